"""What the search found between its objectives."""

from __future__ import annotations

import numpy as np

from nas.show import draw
from nas.show.report.curves import MOST_DOTS, thinned, tip
from nas.show.report.run import Run
from nas.show.report.section import Drawing, Section, Spot, inline, metric
from nas.types import Trial

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
