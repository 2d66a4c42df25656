"""The anytime curve of a search: what was tried, what was best so far, what it cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nas.show.draw.series import bad_end
from nas.show.draw.style import MUTED, PAPER, Heading, Key, Legend, clean, page, plot_axes, set_dash, write
from nas.show.draw.time_axis import draw_elapsed, time_ticks
from nas.show.draw.trial_points import Baseline, Points, axis_places, baselines_of
from nas.text import counted
from nas.types import Trial

_WIDTH, _PLOT, _STRIP, _LEFT, _RIGHT = 10.0, 3.9, 0.32, 0.95, 0.35
BEST = "#D55E00"
"""The search's own line."""
_FAILED, _DOT = "#A0307F", "#0072B2"
_MANY = 1500


@dataclass(frozen=True, slots=True)
class _LongKey(Key):
    """A legend entry with room for the name of a whole search."""

    @property
    def text(self) -> str:
        return clean(self.label, limit=48) or "?"


def draw_search(
    trials: Sequence[Trial],
    *,
    metric: str = "val_acc",
    maximize: bool = True,
    title: str = "",
    baselines: Mapping[str, Sequence[Trial]] | None = None,
    broken: Collection[int] = (),
    epochs: bool = False,
) -> Figure:
    """Draws every finished trial as a dot and the best value so far, over trial number and evaluation time.

    Dots are coloured by fidelity when there are several; the best is over all fidelities. Failed trials,
    and finished ones without a finite `metric`, are crosses below. Values far on the bad side are drawn as
    triangles at the edge, so that they do not flatten the rest. Running trials are left out.

    baselines: other searches by name, such as `"random search at equal cost"`; the best so far of each is a
        thin line, or a dashed level when it is a single trial.
    broken: numbers of the trials that break a constraint; they are rings, and never the best.
    epochs: whether trial i is epoch i + 1 of one supernet. Then all is drawn over evaluation time, as an
        epoch costs another time than a trial of a baseline.
    """
    runs = {} if baselines is None else baselines
    points = Points.of(trials, metric, broken, by_time=epochs)
    others = baselines_of(runs, metric, maximize=maximize, by_time=epochs)
    colors = _fidelity_colors(points.fidelities)
    unit = "epoch" if epochs else "trial"
    above = not epochs and any(trial.cost_s > 0 for trial in trials)
    legend = Legend(_keys(points, colors, others, unit), _WIDTH - 0.7)
    heading = Heading(title)
    strip, bottom = _STRIP if len(points.failed) else 0.0, 0.35 + legend.height + 0.75
    top_room = 0.35 + heading.height + (0.6 if above else 0.0)
    figure, sheet = page(_WIDTH, bottom + strip + _PLOT + top_room)
    height = bottom + strip + _PLOT + top_room
    heading.draw(sheet, 0.35, height - 0.35)
    legend.draw(sheet, 0.35, 0.35 + legend.height)
    inner = _WIDTH - _LEFT - _RIGHT
    main = plot_axes(figure, _LEFT, bottom + strip, inner, _PLOT)
    span = _span([trials, *(run for run in runs.values() if len(run) > 1)], by_time=epochs)
    main.set_xlim(*span)
    under = "evaluation time" if epochs else unit
    write(sheet, _LEFT + inner / 2, bottom - 0.48, under, size=11, color=MUTED)
    write(sheet, 0.27, bottom + strip + _PLOT / 2, clean(metric), size=11, color=MUTED, angle=90)
    if len(points.numbers) or others:
        ends = [*points.values[points.improving(maximize=maximize)][-1:], *(one.values[-1] for one in others)]
        main.set_ylim(*_limits(points.values, ends, maximize=maximize))
    else:
        main.set_yticks([])
    for other in others:
        _draw_baseline(main, other)
    if len(points.numbers):
        _draw_values(main, points, colors, maximize=maximize)
    else:
        center = (_LEFT + inner / 2, bottom + strip + _PLOT / 2)
        write(sheet, *center, text="no finished trial yet", color=MUTED, size=12)
    if points.kept.any():
        _draw_best(main, points, maximize=maximize, unit=unit)
    lowest = main
    if strip:
        lowest = plot_axes(figure, _LEFT, bottom, inner, strip)
        lowest.set(xlim=span, ylim=(-1, 1), yticks=[])
        lowest.plot(points.failed, np.zeros(len(points.failed)), "x", color=_FAILED, markersize=6, mew=1.4)
        write(sheet, _LEFT - 0.12, bottom + strip / 2, "failed", size=9.5, color=_FAILED, ha="right")
        main.tick_params(labelbottom=False)
    if epochs:
        lowest.set_xticks(*zip(*time_ticks(span[1], most=8), strict=True))
    else:
        lowest.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    if above:
        draw_elapsed(main, trials, span)
        where = (_LEFT + inner / 2, bottom + strip + _PLOT + 0.46)
        write(sheet, *where, text="evaluation time", size=11, color=MUTED)
    return figure


def _span(runs: Sequence[Sequence[Trial]], *, by_time: bool) -> tuple[float, float]:
    last = max((max(axis_places(run, by_time=by_time).values()) for run in runs if run), default=1.0)
    room = 0.0 if by_time else 0.3
    return -0.015 * max(last, 1) - room, last * 1.015 + room


def _fidelity_colors(fidelities: NDArray[np.int64]) -> dict[int, str]:
    levels = [int(f) for f in np.unique(fidelities)]
    if len(levels) < 2:
        return dict.fromkeys(levels, _DOT)
    ramp = mpl.colormaps["viridis"](np.linspace(0.82, 0.08, len(levels)))
    return {level: to_hex(color) for level, color in zip(levels, ramp, strict=True)}


def _keys(points: Points, colors: dict[int, str], others: Sequence[Baseline], unit: str) -> list[Key]:
    keys: list[Key] = []
    if len(points.numbers):
        names = [_fidelity_name(f) for f in colors] if len(colors) > 1 else [unit]
        keys += [Key(name, color, mark="dot") for name, color in zip(names, colors.values(), strict=True)]
        if not points.kept.all():
            color = next(iter(colors.values())) if len(colors) == 1 else MUTED
            keys.append(Key("breaks a constraint", color, mark="ring"))
        if points.kept.any():
            keys.append(Key("best so far", BEST))
    keys += [_LongKey(other.name, other.color, other.dash) for other in others]
    if len(points.failed):
        keys.append(Key("failed", _FAILED, mark="cross"))
    return keys


def _fidelity_name(fidelity: int) -> str:
    return "untrained" if fidelity == 0 else counted(fidelity, "epoch")


def _draw_values(axes: Axes, points: Points, colors: dict[int, str], *, maximize: bool) -> None:
    low, high = axes.get_ylim()
    edge = low + 0.025 * (high - low) if maximize else high - 0.025 * (high - low)
    inside = (points.values >= low) & (points.values <= high)
    heights = np.where(inside, points.values, edge)
    for fidelity, color in colors.items():
        for within, marker, size in ((inside, "o", 5.5), (~inside, "v" if maximize else "^", 5.0)):
            for kept in (False, True):
                chosen = (points.fidelities == fidelity) & within & (points.kept == kept)
                (dots,) = axes.plot(points.places[chosen], heights[chosen], marker, markersize=size)
                _paint(dots, color, hollow=not kept, many=len(points.numbers) > _MANY)


def _paint(dots: Line2D, color: str, *, hollow: bool, many: bool) -> None:
    dots.set(markerfacecolor=PAPER if hollow else color, markeredgecolor=color if hollow else PAPER)
    dots.set(markeredgewidth=1.1 if hollow else 0.5, alpha=0.75)
    if many:
        # One picture of the dots is a smaller file than the dots, flat ones above all.
        size = 0.5 * float(dots.get_markersize())
        dots.set(alpha=1.0, rasterized=True, markersize=size, markeredgewidth=0.6 if hollow else 0)


def _limits(
    values: NDArray[np.float64], ends: Sequence[np.float64], *, maximize: bool
) -> tuple[float, float]:
    """Axis limits with headroom at the good end; the bad end cuts off what is far below the rest.

    ends: the best of the search and of the baselines, all of which are shown.
    """
    sign = 1 if maximize else -1
    others = sign * np.asarray(ends, dtype=np.float64)
    scores = sign * values if len(values) else others
    bad = min(bad_end(scores), *others, np.inf)
    best = max(float(scores.max()), *others, -np.inf)
    spread = (best - bad) or 0.1 * abs(best) or 1.0
    low, high = bad - 0.06 * spread, best + 0.2 * spread
    return (low, high) if maximize else (-high, -low)


def _draw_baseline(axes: Axes, other: Baseline) -> None:
    left, right = axes.get_xlim()
    # A single trial is a level to reach, whenever it was run.
    places = [left if other.dash else other.places[0], *other.places[1:], right]
    heights = [*other.values, other.values[-1]]
    (line,) = axes.step(places, heights, where="post", color=other.color, linewidth=1.5, zorder=4)
    set_dash(line, other.dash)


def _draw_best(axes: Axes, points: Points, *, maximize: bool, unit: str) -> None:
    new = points.improving(maximize=maximize)
    steps, bests = points.places[new], points.values[new]
    until, level = [*steps, axes.get_xlim()[1]], [*bests, bests[-1]]
    axes.step(until, level, where="post", color=BEST, linewidth=2.4, solid_joinstyle="round", zorder=5)
    x, y = steps[-1], bests[-1]
    axes.plot([x], [y], "o", color=BEST, markersize=9, markeredgecolor=PAPER, markeredgewidth=1.6, zorder=6)
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    place = (x - left) / (right - left)
    text = f"best {y:.4g} · {unit} {points.numbers[new[-1]] + (unit == 'epoch')}"
    lift = 0.055 * (high - low) * (1 if maximize else -1)
    note = write(axes, x, y + lift, text, size=11.5, bold=True, color=BEST)
    note.set_horizontalalignment("left" if place < 0.2 else "right" if place > 0.8 else "center")
    note.set_bbox({"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 1.5})
