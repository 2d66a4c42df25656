"""The anytime curve of a search: what was tried, what was best so far, what it cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import isfinite

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.show.draw.style import (
    HAIR,
    MUTED,
    PAPER,
    Heading,
    Key,
    Legend,
    bad_end,
    clean,
    page,
    plot_axes,
    set_dash,
    write,
)
from nas.text import counted
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


_MUTED_HUES = ("#5F7F9B", "#B58B4A", "#8B6F96", "#6E9A86", "#8C8C8C")
BASELINE = _MUTED_HUES[0]
"""The line of what a search is compared with first."""


@dataclass(frozen=True, slots=True)
class Points:
    """The trials as columns: those with a value in the order of their numbers, and places of the failed.

    places, failed: on the horizontal axis.
    kept: [N] whether each keeps all constraints; others are never the best.
    """

    numbers: NDArray[np.int64]
    places: NDArray[np.float64]
    values: NDArray[np.float64]
    fidelities: NDArray[np.int64]
    kept: NDArray[np.bool_]
    failed: NDArray[np.float64]

    @classmethod
    def of(
        cls, trials: Sequence[Trial], metric: str, broken: Collection[int] = (), *, by_time: bool
    ) -> Points:
        """The columns of `trials` by `metric`; those with numbers in `broken` break a constraint."""
        places = axis_places(trials, by_time=by_time)
        done, failed = [], []
        for trial in trials:
            value = trial.metrics.get(metric, float("nan"))
            if trial.state == "done" and isfinite(value):
                done.append((trial.number, places[trial.number], value, trial.fidelity))
            elif trial.state != "running":
                failed.append(places[trial.number])
        done.sort()
        numbers, at, values, fidelities = zip(*done, strict=True) if done else ((), (), (), ())
        return cls(
            np.asarray(numbers, dtype=np.int64),
            np.asarray(at, dtype=np.float64),
            np.asarray(values, dtype=np.float64),
            np.asarray(fidelities, dtype=np.int64),
            np.asarray([number not in broken for number in numbers], dtype=np.bool_),
            np.asarray(failed, dtype=np.float64),
        )

    def improving(self, *, maximize: bool) -> NDArray[np.int64]:
        """[K] rows of the trials at which there was a new best."""
        kept = np.flatnonzero(self.kept)
        running = (np.maximum if maximize else np.minimum).accumulate(self.values[kept])
        return np.asarray(kept[np.diff(running, prepend=np.nan) != 0])


@dataclass(frozen=True, slots=True)
class Baseline:
    """Another search to compare with: when its best improved, and how that is drawn.

    places, values: [K] where on the horizontal axis there was a new best, and that best.
    dash: on and off lengths of its line.
    """

    name: str
    color: str
    dash: tuple[float, ...]
    places: NDArray[np.float64]
    values: NDArray[np.float64]


def baselines_of(
    runs: Mapping[str, Sequence[Trial]], metric: str, *, maximize: bool, by_time: bool
) -> list[Baseline]:
    """Each of `runs` in a muted colour of its own; ConfigError for one without a finite value."""
    found = []
    for (name, run), color in zip(runs.items(), cycle(_MUTED_HUES), strict=False):
        points = Points.of(run, metric, by_time=by_time)
        if not len(points.numbers):
            raise ConfigError(
                f"baselines[{name!r}]: got no finished trial with a finite {metric!r}; leave it out"
            )
        new = points.improving(maximize=maximize)
        dash = (5.0, 2.4) if len(run) == 1 else ()
        found.append(Baseline(name, color, dash, points.places[new], points.values[new]))
    return found


def axis_places(trials: Sequence[Trial], *, by_time: bool) -> dict[int, float]:
    """Where trials are on the horizontal axis, by their numbers: there, or at the seconds at their ends."""
    return elapsed(trials) if by_time else {trial.number: trial.number for trial in trials}


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
