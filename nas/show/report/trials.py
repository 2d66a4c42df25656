"""Which operations and which decisions mattered, as far as the history can tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.show.report.run import Past, Run
from nas.show.report.section import Section, metric, signed
from nas.types import Genotype, Trial

_LEAST_TRIALS = 8
_MOST_ROWS = 30
_Z = 1.959964
Values = NDArray[np.float64]


def importance(run: Run) -> Section | None:
    """Of the search's trials, or of random search's where those are epochs of a supernet."""
    past = run.random if run.is_by_gradients else run.search
    trials = past.longest
    objective = past.goals.objectives[0]
    values = np.array([objective.value(t.metrics) for t in trials])
    if len(trials) < _LEAST_TRIALS or not values.std() > 0:
        return None
    whose = "random search's" if past is run.random else "the search's"
    scale, unit = (100.0, "points") if objective.name.endswith("acc") else (1.0, objective.name)
    biased = (
        ""
        if past is run.random
        else " A search tries what it likes more often, so that little is proven by it."
    )
    return Section(
        "importance",
        "What mattered",
        f"From {whose} {len(trials)} finished trials, by {objective.name}; associations, not causes, and of "
        f"twenty intervals one misses by chance.{biased}",
        template="importance",
        values={
            "operations": operations(past, trials, values),
            "decisions": decisions(past, trials, values, scale)[:_MOST_ROWS],
            "unit": unit,
            "left": max(0, len(past.decisions) - _MOST_ROWS),
        },
    )


def operations(past: Past, trials: Sequence[Trial], values: Values) -> list[Mapping[str, object]]:
    """For each option that more than one decision offers: Spearman's ρ of how often it is used and the value.

    The 95 % interval is tanh(atanh ρ ± 1.96 √((1 + ρ²/2) / (N - 3))) (Bonett and Wright 2000).
    """
    from scipy.stats import spearmanr

    offered = Counter(option for d in past.decisions for option in set(d.options))
    chosen = np.array([t.genotype for t in trials])
    rows = []
    for name in sorted(option for option, times in offered.items() if times > 1):
        places = [(i, d.options.index(name)) for i, d in enumerate(past.decisions) if name in d.options]
        uses = sum((chosen[:, i] == option).astype(int) for i, option in places)
        if uses.std() == 0:
            continue
        rho = float(spearmanr(uses, values).statistic)
        half = _Z * math.sqrt((1 + rho**2 / 2) / (len(trials) - 3))
        middle = math.atanh(min(max(rho, -0.999999), 0.999999))
        low, high = math.tanh(middle - half), math.tanh(middle + half)
        rows.append({"name": name, "rho": rho, "low": low, "high": high, "text": _interval(rho, low, high)})
    return sorted(rows, key=lambda row: -float(row["rho"]))  # type: ignore[arg-type]


def decisions(
    past: Past, trials: Sequence[Trial], values: Values, scale: float
) -> list[Mapping[str, object]]:
    """For each decision ε², and the options with the highest and the lowest mean; the most important first.

    ε² = (S_B - (K - 1) s²) / S_T, not below 0: the share of the values' variance that K options explain, less
    what they would by chance (Kelley 1935); S_B and S_T are the sums of squares between options and in all,
    s² is the mean square within options.
    """
    chosen = np.array([t.genotype for t in trials])
    rows = []
    for place, decision in enumerate(past.decisions):
        groups = {o: values[chosen[:, place] == o] for o in sorted(set(chosen[:, place].tolist()))}
        within, spare = sum(g.var() * len(g) for g in groups.values()), len(values) - len(groups)
        if len(groups) < 2 or spare < 1:
            continue
        total = values.var() * len(values)
        share = max(0.0, (total - within - (len(groups) - 1) * within / spare) / total)
        order = sorted(groups, key=lambda o: -groups[o].mean())
        best, worst = ((decision.options[o], _effect(groups, o, scale)) for o in (order[0], order[-1]))
        rows.append(
            {
                "name": decision.name,
                "share": share,
                "text": f"{100 * share:.0f} %",
                "best": best,
                "worst": worst,
            }
        )
    return sorted(rows, key=lambda row: -float(row["share"]))  # type: ignore[arg-type]


def _effect(groups: Mapping[int, Values], option: int, scale: float) -> str:
    """Mean with the option less mean without it, ± half of its 95 % interval (Welch 1947).

    With as many degrees of freedom as a few trials have: those of two trials tell little of their spread.
    """
    own = scale * groups[option]
    other = scale * np.concatenate([g for o, g in groups.items() if o != option])
    difference = signed(float(own.mean() - other.mean()))
    if min(len(own), len(other)) < 2:
        return f"{difference} (one trial)"
    from scipy.stats import t as student

    errors = [group.var(ddof=1) / len(group) for group in (own, other)]
    shares = sum(error**2 / (len(group) - 1) for error, group in zip(errors, (own, other), strict=True))
    degrees = sum(errors) ** 2 / shares if shares else math.inf
    return f"{difference} ± {student.ppf(0.975, degrees) * math.sqrt(sum(errors)):.2f}"


def _interval(middle: float, low: float, high: float) -> str:
    return f"{signed(middle)} ({signed(low)} to {signed(high)})"


WITH_PARENTS = ("evolution", "local", "nsga2", "guided", "spos")
"""Methods that make architectures out of earlier ones."""
_SHOWN = 8


def lineage(run: Run) -> Section | None:
    """The winner and its likely ancestors, the first one on top."""
    start = run.winner or run.best
    if start is None or run.method not in WITH_PARENTS:
        return None
    chain = ancestors(run.search, start)
    if len(chain) < 2:
        return None
    other = run.is_finished and run.winner is None
    best = "Another architecture than the search's won, so that this is the search's best. " if other else ""
    limit = nearest_limit(run.search)
    return Section(
        "lineage",
        "Lineage of the search's best" if run.winner is None else "Lineage of the winner",
        f"{best}The history does not record parents, so that these are derived: each step goes back to the "
        "earlier finished trial that differs in the fewest decisions, the better one of equals, and ends "
        f"where none differs in at most {limit}. They need not be the searcher's own parents.",
        template="lineage",
        values={
            "rows": [
                _row(run.search, parent, child)
                for parent, child in zip([None, *chain[:-1]], chain, strict=True)
            ]
        },
    )


def nearest_limit(past: Past) -> int:
    """How many decisions a child may differ in: a quarter, at least two."""
    return max(2, len(past.decisions) // 4)


def ancestors(past: Past, trial: Trial) -> list[Trial]:
    """The trial and what it likely descends from, the earliest first."""
    objective, limit = past.goals.objectives[0], nearest_limit(past)
    chain = [trial]
    while True:
        child = chain[-1]
        earlier = [(_distance(t.genotype, child.genotype), t) for t in child.known(past.done)]
        near = [(distance, t) for distance, t in earlier if 0 < distance <= limit]
        if not near:
            return chain[::-1]
        chain.append(min(near, key=lambda e: (e[0], -objective.score(e[1].metrics), -e[1].number))[1])


def _distance(one: Genotype, other: Genotype) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _row(past: Past, parent: Trial | None, child: Trial) -> Mapping[str, object]:
    objective = past.goals.objectives[0]
    value = objective.value(child.metrics)
    row = {
        "trial": child.number,
        "value": metric(objective.name, value),
        "gain": "",
        "changes": [],
        "more": 0,
    }
    if parent is None:
        return row
    before, after = past.choices(parent.genotype), past.choices(child.genotype)
    changes = [(name, before[name], after[name]) for name in before if before[name] != after[name]]
    gain = value - objective.value(parent.metrics)
    points = f"{signed(100 * gain)} points" if objective.name.endswith("acc") else signed(gain, 4)
    return {**row, "gain": points, "changes": changes[:_SHOWN], "more": max(0, len(changes) - _SHOWN)}
