"""Where the winner comes from."""

from __future__ import annotations

from collections.abc import Mapping

from nas.show.report.history import Past
from nas.show.report.run import Run
from nas.show.report.section import Section, metric, signed
from nas.types import Genotype, Trial

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
