"""How a search went: what it reached after how much work, what mattered, what failed, what it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import spearmanr
from scipy.stats import t as student

from nas.evaluate import failure_summary
from nas.results.result import baselines_of
from nas.show import draw
from nas.show.draw import Bands
from nas.show.draw.search import BASELINE, BEST, axis_places, time_ticks
from nas.show.report.run import History, Run, Work
from nas.show.report.section import Drawing, Spot, Tip, Values, duration, metric, signed, stored
from nas.types import Trial

RANDOM = "random search"
MOST_DOTS = 1000
"""Trials that are drawn of a longer history."""
_MOST_BARS = 1500
_MOST_ROWS = 30
_LONGEST, _MOST_LINES = 60, 8
"""Characters of a name, metrics and choices that are told of a trial."""
Floats = NDArray[np.float64]


# -- how good it was after how much work --------------------------------------------------------------


def anytime(run: Run) -> Values | None:
    """Every trial, the best so far, and random search as it is expected to go."""
    past, by_epochs = run.search, run.is_by_gradients
    told = {"epochs": by_epochs, "broken": bool(past.broken), "all": len(past.trials), "left": 0}
    if not past.trials:
        drawings = stored(run.folder, "search.svg", "the search, as it was drawn when the run finished")
        return told | {"drawings": drawings, "compared": False} if drawings else None
    objective = past.goals.objectives[0]
    shown = list(past.trials) if by_epochs else thinned(past, MOST_DOTS)
    kept = [t for t in run.random.done if t.number not in run.random.broken]
    rivals = baselines_of(kept, past.goals, method=run.method)
    figure = draw.draw_search(
        [objective.with_value(trial) for trial in shown],
        metric=objective.name,
        maximize=objective.maximize,
        baselines={name: [objective.with_value(t) for t in trials] for name, trials in rivals.items()},
        broken=past.broken,
        epochs=by_epochs,
    )
    done = [trial for trial in shown if trial.state == "done"]
    places = axis_places(shown, by_time=by_epochs)
    spots = [
        Spot(places[t.number], objective.value(t.metrics), t.number, " ".join(run.called(t))) for t in done
    ]
    label = f"{objective.name} of every {'epoch' if by_epochs else 'trial'}, and the best so far"
    drawings = [Drawing.of(figure, "trials", label, spots=spots)]
    curves = expected(run)
    if len(curves) > 1:
        xlabel = "seconds of evaluation" if by_epochs else "evaluations"
        figure = draw.draw_anytime(curves, xlabel=xlabel, ylabel=objective.name, colors=(BEST, BASELINE))
        label = f"best {objective.name} so far of the search and of random search"
        drawings.append(Drawing.of(figure, "expected", label))
    return told | {
        "drawings": drawings,
        "compared": len(curves) > 1,
        "left": len(past.trials) - len(shown),
        "tips": {"trials": {trial.number: tip(run, trial) for trial in done}},
    }


def thinned(past: History, most: int) -> list[Trial]:
    """At most about `most` trials: all that improved on those before or are on the front, then evenly."""
    usable = {t.number for t in past.done}
    trials = [t for t in past.trials if t.state != "done" or t.number in usable]
    if len(trials) <= most:
        return trials
    kept = {t.number for t in [*past.goals.front(past.allowed), *past.improving(past.done)]}
    step = math.ceil(len(trials) / most)
    return [t for place, t in enumerate(trials) if t.number in kept or place % step == 0]


def tip(run: Run, trial: Trial) -> Tip:
    """What is told of a trial: metrics and choices, or how often each was made where they are many."""
    chosen = list(run.search.choices(trial.genotype).items())
    if len(chosen) > _MOST_LINES:
        counts = Counter(option for _, option in chosen)
        chosen = [(option, f"{n} ×") for option, n in counts.most_common()]
    numbers = [(name, metric(name, value)) for name, value in list(trial.metrics.items())[:_MOST_LINES]]
    trained = [("epochs", str(trial.fidelity))] if trial.fidelity and not run.is_by_gradients else []
    took = ("took", duration(trial.cost_s))
    lines = [run.called(trial), *numbers, *trained, took, *chosen[: 2 * _MOST_LINES]]
    return [(name[:_LONGEST], value[:_LONGEST]) for name, value in lines]


def expected(run: Run, name: str = "search") -> dict[str, Bands]:
    """The best so far of the search, and what random search is expected to have found after as much work.

    Without what breaks a constraint. With evaluations on the horizontal axis, or seconds where gradients
    searched.
    """
    curves = {}
    objective = run.search.goals.objectives[0]
    turn = 1.0 if objective.maximize else -1.0
    if run.search.allowed:
        best = turn * np.maximum.accumulate([objective.score(t.metrics) for t in run.search.allowed])
        work = elapsed(run.search.allowed) if run.is_by_gradients else np.arange(1.0, len(best) + 1)
        curves[name] = Bands(work, best, best, best)
    if others := run.random.allowed:
        sizes, *rows = order_statistics(np.array([objective.score(t.metrics) for t in others]))
        middle, low, high = (turn * row for row in rows)
        each = elapsed(others)[-1] / len(others) if run.is_by_gradients else 1.0
        curves[RANDOM] = Bands(each * sizes, middle, np.minimum(low, high), np.maximum(low, high))
    return curves


def elapsed(trials: Sequence[Trial]) -> Floats:
    """[N] seconds of evaluation that each trial and all before it took, ever increasing."""
    return np.cumsum([max(t.cost_s, 1e-9) for t in trials])


def order_statistics(scores: Floats, most: int = 200) -> tuple[Floats, ...]:
    """Of the best of k of these N scores: k, the median, and the 10 and 90 % quantiles, each `[K]`.

    They are drawn without replacement: the best is at most the i-th smallest with probability
    C(i, k) / C(N, k). most: of the numbers k in 1 to N.
    """
    ordered, count = np.sort(scores), len(scores)
    sizes = np.unique(np.linspace(1, count, min(count, most)).round())
    log = gammaln(np.arange(count + 1) + 1.0)  # of factorials
    rows = []
    for k in sizes.astype(int):
        share = np.zeros(count)
        share[k - 1 :] = np.exp(log[k:] - log[: count - k + 1] - log[count] + log[count - k])
        places = (min(int(np.searchsorted(share, q - 1e-9)), count - 1) for q in (0.5, 0.1, 0.9))
        rows.append([ordered[place] for place in places])
    return sizes, *np.array(rows).T


def front(run: Run) -> Values | None:
    """The Pareto front, where there are several objectives."""
    past, objectives = run.search, run.search.goals.objectives
    if len(objectives) < 2 or not past.allowed:
        return None
    first, second = objectives[:2]
    found = (run.architecture or {}).get("choices")
    best = sorted(past.goals.front(past.allowed), key=lambda t: -first.score(t.metrics))
    usable = {t.number for t in past.allowed}
    shown = [t for t in thinned(past, MOST_DOTS) if t.number in usable]
    points = np.array([[first.value(t.metrics), second.value(t.metrics)] for t in shown])
    figure = draw.draw_pareto_front(
        points,
        names=(first.name, second.name),
        maximize=(first.maximize, second.maximize),
        chosen=[place for place, t in enumerate(shown) if past.choices(t.genotype) == found][:1],
    )
    spots = [Spot(x, y, t.number, f"trial {t.number}") for t, (x, y) in zip(shown, points, strict=True)]
    label = f"{first.name} against {second.name}, a dot for each of these trials"
    return {
        "drawings": [Drawing.of(figure, "front", label, spots=spots)],
        "objectives": [(o.name, "larger" if o.maximize else "smaller") for o in objectives],
        "count": len(best),
        "of": len(past.allowed),
        "bounded": bool(past.goals.constraints),
        "rows": [
            (t.number, *(metric(o.name, o.value(t.metrics)) for o in objectives)) for t in best[:_MOST_ROWS]
        ],
        "more": len(best) - _MOST_ROWS,
        "tips": {"trials": {trial.number: tip(run, trial) for trial in shown}},
    }


# -- what mattered ------------------------------------------------------------------------------------

_LEAST_TRIALS = 8
_Z = 1.959964


def importance(run: Run) -> Values | None:
    """Which operations and which decisions mattered, as far as the history can tell.

    Of the search's trials, or of random search's where those are epochs of a supernet.
    """
    past = run.random if run.is_by_gradients else run.search
    trials, objective = past.longest, past.goals.objectives[0]
    values = np.array([objective.value(t.metrics) for t in trials])
    if len(trials) < _LEAST_TRIALS or not values.std() > 0:
        return None
    scale, unit = (100.0, "points") if objective.name.endswith("acc") else (1.0, objective.name)
    return {
        "random": past is run.random,
        "count": len(trials),
        "objective": objective.name,
        "unit": unit,
        "operations": operations(past, trials, values),
        "decisions": decisions(past, trials, values, scale)[:_MOST_ROWS],
        "left": len(past.decisions) - _MOST_ROWS,
    }


def operations(past: History, trials: Sequence[Trial], values: Floats) -> list[dict[str, Any]]:
    """For each option that more than one decision offers: Spearman's ρ of how often it is used and the value.

    The 95 % interval is tanh(atanh ρ ± 1.96 √((1 + ρ²/2) / (N - 3))) (Bonett and Wright 2000).
    """
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
        text = f"{signed(rho)} ({signed(low)} to {signed(high)})"
        rows.append({"name": name, "rho": rho, "low": low, "high": high, "text": text})
    return sorted(rows, key=lambda row: -row["rho"])


def decisions(past: History, trials: Sequence[Trial], values: Floats, scale: float) -> list[dict[str, Any]]:
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
        rows.append({"name": decision.name, "share": share, "best": best, "worst": worst})
    return sorted(rows, key=lambda row: -row["share"])


def _effect(groups: Mapping[int, Floats], option: int, scale: float) -> str:
    """Mean with the option less mean without it, ± half of its 95 % interval (Welch 1947).

    With as many degrees of freedom as a few trials have: those of two trials tell little of their spread.
    """
    own = scale * groups[option]
    other = scale * np.concatenate([g for o, g in groups.items() if o != option])
    difference = signed(float(own.mean() - other.mean()))
    if min(len(own), len(other)) < 2:
        return f"{difference} (one trial)"
    errors = [group.var(ddof=1) / len(group) for group in (own, other)]
    shares = sum(error**2 / (len(group) - 1) for error, group in zip(errors, (own, other), strict=True))
    degrees = sum(errors) ** 2 / shares if shares else math.inf
    return f"{difference} ± {student.ppf(0.975, degrees) * math.sqrt(sum(errors)):.2f}"


# -- who did it, what failed, what it cost ------------------------------------------------------------


def failures(run: Run) -> Values | None:
    """How many trials failed, of what, and what helps."""
    lost = [t for t in run.search.trials if t.state == "failed"]
    if not lost:
        return None
    rows = []
    for reason, number in failure_summary.count(lost).items():
        usual = failure_summary.usual([t for t in lost if failure_summary.code(t) == reason])
        rows.append((reason, number, usual, failure_summary.ADVICE.get(reason, "")))
    return {"rows": rows, "count": len(lost), "of": len(run.search.trials)}


def timeline(run: Run) -> Values | None:
    """A bar for each trial, in the row of whoever had it; places and lengths are shares of the whole time."""
    bars = [
        (kind, past, trial, past.work[trial.number])
        for kind, past in (("search", run.search), ("random", run.random))
        for trial in past.trials
    ]
    bars.sort(key=lambda bar: bar[3].begun_s)
    left, bars = max(0, len(bars) - _MOST_BARS), bars[-_MOST_BARS:]
    if not bars:
        return None
    start, now = bars[0][3].begun_s, max(work.ended_s or work.begun_s for *_, work in bars)
    span_s = max(now - start, 1e-3)
    workers = list(dict.fromkeys(work.worker for *_, work in bars))
    shown = [
        {
            "kind": kind if trial.state == "done" else trial.state,
            "row": workers.index(work.worker),
            "begun": (work.begun_s - start) / span_s,
            "length": ((now if work.ended_s is None else work.ended_s) - work.begun_s) / span_s,
            "label": " ".join(_called(run, kind, trial)),
        }
        for kind, _, trial, work in bars
    ]
    return {
        "bars": shown,
        "workers": workers,
        "ticks": [(at / span_s, label) for at, label in time_ticks(span_s, most=5)],
        "began": datetime.fromtimestamp(start).strftime("%Y-%m-%d %H:%M:%S"),
        "kinds": {bar["kind"] for bar in shown},
        "left": left,
        "tips": {"timeline": {place: _bar_tip(run, *bar) for place, bar in enumerate(bars)}},
    }


def _called(run: Run, kind: str, trial: Trial) -> tuple[str, str]:
    return run.called(trial) if kind == "search" else ("trial of random search", str(trial.number))


def _bar_tip(run: Run, kind: str, past: History, trial: Trial, work: Work) -> Tip:
    objective = past.goals.objectives[0]
    known = trial.state == "done" and set(objective.metrics) <= trial.metrics.keys()
    value = [(objective.name, metric(objective.name, objective.value(trial.metrics)))] if known else []
    took = [("took", duration(trial.cost_s))] if trial.cost_s else []
    reason = [("failed", trial.reason[:120])] if trial.reason else []
    return [_called(run, kind, trial), *value, *took, ("worker", work.worker), *reason]


def cost(run: Run, watts: float | None) -> Values | None:
    """Device seconds of each phase, the sum over workers and ranks; before the end, of finished trials.

    watts: of a device while it works, for an estimate of energy.
    """
    ranks = run.told.environment.get("ranks")
    times, m = (ranks if isinstance(ranks, int) and ranks > 0 else 1), run.metrics
    phases = {
        "search": times * m.get("search_seconds", sum(t.cost_s for t in run.search.trials)),
        "random search": sum(t.cost_s for t in run.random.trials),
        "training the best again": m.get("rerank_seconds", 0.0),
        "training the winner": times * m.get("retrain_seconds", 0.0),
    }
    spent = {name: seconds for name, seconds in phases.items() if seconds > 0}
    return {"phases": spent, "total": sum(spent.values()), "watts": watts} if spent else None
