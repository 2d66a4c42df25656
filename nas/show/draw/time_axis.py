"""Seconds along an axis: round ticks in a unit that suits, and how long a search had taken by each trial."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nas.show.draw.style import HAIR, MUTED
from nas.types import Trial

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def elapsed(trials: Sequence[Trial]) -> dict[int, float]:
    """By trial number, the seconds of evaluation that it and all before it took."""
    ordered = sorted(trials, key=lambda trial: trial.number)
    seconds = np.cumsum([trial.cost_s for trial in ordered]).tolist()
    return {trial.number: s for trial, s in zip(ordered, seconds, strict=True)}


def time_ticks(span_s: float, *, most: int) -> list[tuple[float, str]]:
    """Round times from 0 to at most `span_s`, in seconds, each with its label in a unit that suits."""
    unit, name = next((u, n) for u, n in _UNITS if span_s >= 2 * u or u == 1.0)
    marks = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(0, span_s / unit)
    return [(float(m * unit), f"{m:g} {name}") for m in marks if 0 <= m * unit <= span_s]


def draw_elapsed(axes: Axes, trials: Sequence[Trial], span: tuple[float, float]) -> None:
    """Ticks of cumulative evaluation time along the top."""
    after = elapsed(trials)
    numbers, seconds = list(after), list(after.values())
    marks = [(at, label) for at, label in time_ticks(seconds[-1], most=7) if at > 0]
    twin = axes.twiny()
    twin.set_xlim(*span)
    shown: list[tuple[int, str]] = []
    for mark, label in marks:
        # The end of the trial during which the time was reached.
        x = numbers[np.searchsorted(seconds, mark)]
        if not shown or x - shown[-1][0] > 0.07 * (span[1] - span[0]):
            shown.append((x, label))
    twin.set_xticks([x for x, _ in shown], [label for _, label in shown])
    twin.tick_params(colors=MUTED, labelsize=9.5, length=3, color=HAIR, labelfontfamily="DejaVu Sans")
    for spine in twin.spines.values():
        spine.set_visible(False)
