"""How good the search was after how much work, against its baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from nas.files.schemas import EpochRecord
from nas.show import draw
from nas.show.draw import Bands
from nas.show.draw.curves import BASELINE, BEST, axis_places
from nas.show.draw.diagnostics_series import series_of
from nas.show.report.run import Past, Run
from nas.show.report.section import Drawing, Section, Spot, Tip, duration, inline, metric, stored
from nas.types import Trial

RANDOM, LARGEST = "random search", "largest of these by MACs"
MOST_DOTS = 1000
"""Trials that are drawn of a longer history."""
_LONGEST, _MOST_LINES = 60, 8
"""Characters of a name, metrics and choices that are told of a trial."""
_QUANTILES = (0.5, 0.1, 0.9)


def anytime(run: Run) -> Section | None:
    """Every trial, the best so far, and random search as it is expected to go."""
    past, plain = run.search, _EPOCHS if run.is_by_gradients else _TRIALS
    if not past.trials:
        drawings = stored(run.folder, "search.svg", "the search, as it was drawn when the run finished")
        return Section("anytime", "Anytime curve", plain, drawings=drawings) if drawings else None
    objective = past.goals.objectives[0]
    shown = list(past.trials) if run.is_by_gradients else thinned(past, MOST_DOTS)
    valued = [objective.with_value(trial) for trial in shown]
    figure = draw.draw_search(
        valued,
        metric=objective.name,
        maximize=objective.maximize,
        baselines=_baselines(run),
        broken=past.broken,
        epochs=run.is_by_gradients,
    )
    done = [trial for trial in shown if trial.state == "done"]
    places = axis_places(shown, by_time=run.is_by_gradients)
    spots = [
        Spot(places[t.number], objective.value(t.metrics), t.number, " ".join(run.called(t))) for t in done
    ]
    label = f"{objective.name} of every {'epoch' if run.is_by_gradients else 'trial'}, and the best so far"
    svg = inline(figure, name="trials", label=label, spots=spots, tips="trials")
    drawings = [Drawing(label, label, svg=svg, wide=True)]
    if len(curves := expected(run)) > 1:
        xlabel = "seconds of evaluation" if run.is_by_gradients else "evaluations"
        figure = draw.draw_anytime(curves, xlabel=xlabel, ylabel=objective.name, colors=(BEST, BASELINE))
        label = f"best {objective.name} so far of the search and of random search"
        drawings.append(Drawing(label, label, svg=inline(figure, name="expected", label=label), wide=True))
    return Section(
        "anytime",
        "Anytime curve",
        plain + _BROKEN * bool(past.broken) + _reading(run, len(curves) > 1) + _left_out(shown, past),
        drawings=drawings,
        tips={"trials": {trial.number: tip(run, trial) for trial in done}},
    )


_TRIALS = "Each dot is a trial, the line the best value found so far."
_EPOCHS = (
    "Each dot is an epoch of the supernet, the line the best value so far, over the time that both took."
)
_BROKEN = " Rings are trials that break a constraint; they are not among the best."


def _reading(run: Run, banded: bool) -> str:  # noqa: FBT001 - of one caller
    alone = (
        " Accuracies of the search are those of its supernet, those of random search of networks trained "
        "alone."
        if run.is_by_gradients
        else ""
    )
    band = (
        " The second picture compares it with random search: its line is the median of the best of so many "
        "of its trials over all their orders, its band goes from the 10 % to the 90 % quantile. The search "
        "was run once, so that it has no band of its own."
    )
    return " Point at a dot, or move to it with the tab key, to see what it was." + alone + band * banded


def _left_out(shown: Sequence[Trial], past: Past) -> str:
    left = len(past.trials) - len(shown)
    return (
        f" {left} of {len(past.trials)} trials are left out, none that improved on those before."
        if left
        else ""
    )


def thinned(past: Past, most: int) -> list[Trial]:
    """At most about `most` trials: all that improved on those before or are on the front, then evenly."""
    usable = {t.number for t in past.done}
    trials = [t for t in past.trials if t.state != "done" or t.number in usable]
    if len(trials) <= most:
        return trials
    best, kept = -math.inf, {t.number for t in past.goals.front(past.allowed)}
    for trial in past.done:
        score = past.goals.objectives[0].score(trial.metrics)
        if score > best and trial.number not in past.broken:
            best = score
            kept.add(trial.number)
    step = math.ceil(len(trials) / most)
    return [t for place, t in enumerate(trials) if t.number in kept or place % step == 0]


def tip(run: Run, trial: Trial) -> Tip:
    """What is told of a trial: metrics and choices, or how often each was made where they are many."""
    chosen = list(run.search.choices(trial.genotype).items())
    if len(chosen) > _MOST_LINES:
        counts: dict[str, int] = {}
        for _, option in chosen:
            counts[option] = counts.get(option, 0) + 1
        chosen = [(option, f"{n} ×") for option, n in sorted(counts.items(), key=lambda c: -c[1])]
    chosen = chosen[: 2 * _MOST_LINES]
    numbers = [(name, metric(name, value)) for name, value in list(trial.metrics.items())[:_MOST_LINES]]
    trained = [("epochs", str(trial.fidelity))] if trial.fidelity and not run.is_by_gradients else []
    lines = [run.called(trial), *numbers, *trained, ("took", duration(trial.cost_s)), *chosen]
    return [(name[:_LONGEST], value[:_LONGEST]) for name, value in lines]


def _baselines(run: Run) -> Mapping[str, Sequence[Trial]]:
    objective, done = run.search.goals.objectives[0], run.random.done
    done = [t for t in done if t.number not in run.random.broken]
    if not done:
        return {}
    note = ", trained alone" if run.is_by_gradients else ""
    largest = [max(done, key=lambda t: t.metrics["macs"])] if all("macs" in t.metrics for t in done) else []
    found = {f"{RANDOM} at equal cost{note}": done, LARGEST + note: largest}
    return {name: [objective.with_value(t) for t in trials] for name, trials in found.items() if trials}


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
        seconds = np.cumsum([max(t.cost_s, 1e-9) for t in run.search.allowed])
        work = seconds if run.is_by_gradients else np.arange(1.0, len(best) + 1)
        curves[name] = Bands(work, best, best, best)
    if others := run.random.allowed:
        sizes, *rows = order_statistics(np.array([objective.score(t.metrics) for t in others]))
        middle, low, high = (turn * row for row in rows)
        each = max(float(np.mean([t.cost_s for t in others])), 1e-9) if run.is_by_gradients else 1.0
        curves[RANDOM] = Bands(each * sizes, middle, np.minimum(low, high), np.maximum(low, high))
    return curves


def order_statistics(scores: NDArray[np.float64], most: int = 200) -> tuple[NDArray[np.float64], ...]:
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
        places = (min(int(np.searchsorted(share, q - 1e-9)), count - 1) for q in _QUANTILES)
        rows.append([ordered[place] for place in places])
    return sizes, *np.array(rows).T


_MOST_ROWS = 30


def front(run: Run) -> Section | None:
    """The Pareto front, where there are several objectives."""
    past = run.search
    objectives = past.goals.objectives
    if len(objectives) < 2 or not past.allowed:
        return None
    best = past.goals.front(past.allowed)
    rows = [
        (str(t.number), [metric(o.name, o.value(t.metrics)) for o in objectives])
        for t in sorted(best, key=lambda t: -objectives[0].score(t.metrics))
    ]
    usable = {t.number for t in past.allowed}
    shown = [t for t in thinned(past, MOST_DOTS) if t.number in usable]
    wanted = " and ".join(f"{o.name} ({'larger' if o.maximize else 'smaller'} is better)" for o in objectives)
    kept = " that keep all constraints" if past.goals.constraints else ""
    more = " The picture shows the first two." if len(objectives) > 2 else ""
    return Section(
        "front",
        "Pareto front",
        f"Trade-offs between {wanted}. No other trial is at least as good in every objective and better in "
        f"one than those on the front: {len(best)} of {len(past.allowed)} finished trials{kept}.{more} Point "
        "at a dot, or move to it with the tab key, to see what it was.",
        template="front",
        drawings=[_drawing(run, shown)],
        values={
            "names": [o.name for o in objectives],
            "rows": rows[:_MOST_ROWS],
            "more": len(rows) - _MOST_ROWS,
        },
        tips={"trials": {trial.number: tip(run, trial) for trial in shown}},
    )


def _drawing(run: Run, shown: list[Trial]) -> Drawing:
    first, second = run.search.goals.objectives[:2]
    points = np.array([[first.value(t.metrics), second.value(t.metrics)] for t in shown])
    won = run.winner
    figure = draw.draw_front(
        points,
        names=(first.name, second.name),
        maximize=(first.maximize, second.maximize),
        chosen=[place for place, t in enumerate(shown) if won is not None and t.number == won.number],
    )
    spots = [
        Spot(x, y, t.number, f"trial {t.number}") for t, (x, y) in zip(shown, points.tolist(), strict=True)
    ]
    label = f"{first.name} against {second.name}, a dot for each of these trials"
    svg = inline(figure, name="front", label=label, spots=spots, tips="trials")
    return Drawing(label, label, svg=svg, wide=True)


def alphas(run: Run) -> Section | None:
    """How strong every operation was at the end, and on the way there."""
    reading = (
        "Every decision's row holds the strength (the mixture weight that its alphas give) of each operation "
        "after the last epoch, from 0 to 1; outlined is the strongest. Rows without a clear favourite "
        "are close decisions. The panels show the same over the epochs; dotted is an even mixture."
    )
    drawings = _alphas(run) or stored(run.folder, "alphas.svg", "strengths over the search")
    return Section("alphas", "Alphas", reading, drawings=drawings) if drawings else None


def _alphas(run: Run) -> list[Drawing]:
    found = run.alphas
    if found is None or not len(found.strengths):
        return []
    names, options = found.decisions, found.options
    heat = draw.draw_alpha_heatmap(found.strengths[-1], names, options)
    panels = draw.draw_alphas(found.strengths, decisions=names, options=options)
    return [
        Drawing(label, label, svg=inline(figure, name=name, label=label), wide=True)
        for name, figure, label in (
            ("heat", heat, "heat map of the strengths after the last epoch"),
            ("strengths", panels, "strengths over the search, a panel for each decision"),
        )
    ]


def health(run: Run) -> Section | None:
    """The signs of a collapse, epoch by epoch."""
    rows = run.health or _from_trials(run)
    if not rows:
        return None
    figure = draw.draw_health(series_of(rows))
    label = "health of the search by epoch"
    return Section(
        "health",
        "Health of the search",
        "Signs of a collapse: a growing share of identities (skip connections), a dominant eigenvalue of the "
        "validation loss's Hessian that leaves its band, and a gap between the supernet and the network that "
        "it prefers. An entropy near 1 means that the alphas are undecided.",
        drawings=[Drawing(label, label, svg=inline(figure, name="health", label=label), wide=True)],
        template="events",
        values={"events": [(row.epoch, event) for row in rows for event in row.events]},
    )


def _from_trials(run: Run) -> list[EpochRecord]:
    """The same of a search that has not ended, in which each epoch is a trial."""
    if not run.is_by_gradients:
        return []
    return [
        EpochRecord.model_validate(
            {
                **trial.metrics,
                "epoch": place + 1,
                "skip_shares": {"all cells": trial.metrics.get("skip_share", 0.0)},
                "events": [],
            }
        )
        for place, trial in enumerate(run.search.done)
    ]
