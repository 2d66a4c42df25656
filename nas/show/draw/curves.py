"""Curves of the best so far: of one search, trial by trial, and of several strategies beside each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import isfinite, nan

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nas.errors import counted
from nas.show.draw.style import (
    HAIR,
    INK,
    MUTED,
    PAPER,
    SERIES,
    Column,
    clean,
    finish,
    fit,
    good_limits,
    key,
    scatter_within,
    set_dash,
    styled,
    tidy_ticks,
    write,
)
from nas.types import Trial

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_MUTED_HUES = ("#5F7F9B", "#B58B4A", "#8B6F96", "#6E9A86", "#8C8C8C")
BEST, BASELINE = "#D55E00", _MUTED_HUES[0]
"""The lines of a search and of what it is compared with first."""
_FAILED, _DOT = "#A0307F", "#0072B2"
_LEVEL = (5.0, 2.4)
"""The dashes of a baseline that is a single trial."""


def time_ticks(span_s: float, *, most: int) -> list[tuple[float, str]]:
    """Round times from 0 to at most `span_s`, in seconds, each with its label in a unit that suits."""
    unit, name = next((u, n) for u, n in _UNITS if span_s >= 2 * u or u == 1.0)
    marks = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(0, span_s / unit)
    return [(float(m * unit), f"{m:g} {name}") for m in marks if 0 <= m * unit <= span_s]


def axis_places(trials: Sequence[Trial], *, by_time: bool) -> dict[int, float]:
    """Where trials are on the horizontal axis, by number: there, or at the seconds that they took in all."""
    ordered = sorted(trials, key=lambda trial: trial.number)
    seconds = np.cumsum([trial.cost_s for trial in ordered]).tolist()
    return {t.number: s if by_time else t.number for t, s in zip(ordered, seconds, strict=True)}


@dataclass(frozen=True, slots=True)
class _Points:
    """The trials as columns: those with a value in the order of their numbers, and places of the failed.

    places, failed: on the horizontal axis.
    kept: [N] whether each keeps all constraints; others are never the best.
    """

    numbers: NDArray[np.int64]
    places: Column
    values: Column
    fidelities: NDArray[np.int64]
    kept: NDArray[np.bool_]
    failed: Column

    def improving(self, *, maximize: bool) -> NDArray[np.int64]:
        """[K] rows of the trials at which there was a new best."""
        kept = np.flatnonzero(self.kept)
        running = (np.maximum if maximize else np.minimum).accumulate(self.values[kept])
        return np.asarray(kept[np.diff(running, prepend=np.nan) != 0])


def _points(trials: Sequence[Trial], metric: str, broken: Collection[int] = (), *, by_time: bool) -> _Points:
    """The columns of `trials` by `metric`; those with numbers in `broken` break a constraint."""
    places = axis_places(trials, by_time=by_time)
    ended = sorted((t for t in trials if t.state != "running"), key=lambda trial: trial.number)
    done = [t for t in ended if t.state == "done" and isfinite(t.metrics.get(metric, nan))]
    known = {trial.number for trial in done}
    return _Points(
        np.asarray([t.number for t in done], dtype=np.int64),
        np.asarray([places[t.number] for t in done], dtype=np.float64),
        np.asarray([t.metrics[metric] for t in done], dtype=np.float64),
        np.asarray([t.fidelity for t in done], dtype=np.int64),
        np.asarray([t.number not in broken for t in done], dtype=np.bool_),
        np.asarray([places[t.number] for t in ended if t.number not in known], dtype=np.float64),
    )


@styled
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
        thin line, or a dashed level when it is a single trial. One without any value is left out.
    broken: numbers of the trials that break a constraint; they are rings, and never the best.
    epochs: whether trial i is epoch i + 1 of one supernet. Then all is drawn over evaluation time, as an
        epoch costs another time than a trial of a baseline.
    """
    runs = {name: run for name, run in (baselines or {}).items() if run}
    points = _points(trials, metric, broken, by_time=epochs)
    others = {name: _points(run, metric, by_time=epochs) for name, run in runs.items()}
    others = {name: other for name, other in others.items() if len(other.numbers)}
    unit = "epoch" if epochs else "trial"
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="evaluation time" if epochs else unit, ylabel=clean(metric))
    span = _span([trials, *(run for run in runs.values() if len(run) > 1)], by_time=epochs)
    axes.set_xlim(*span)
    ends = [one.values[one.improving(maximize=maximize)][-1:] for one in (points, *others.values())]
    shown = np.concatenate(ends).tolist()
    if len(points.numbers) or shown:
        axes.set_ylim(*good_limits(points.values.tolist(), shown, maximize=maximize, above=0.2))
    else:
        axes.set(ylim=(0, 1), yticks=[])
    keys = _draw_values(axes, points, unit=unit)
    if points.kept.any():
        keys.append(_draw_best(axes, points, maximize=maximize, unit=unit))
    for (name, other), color in zip(others.items(), cycle(_MUTED_HUES), strict=False):
        dash = _LEVEL if len(runs[name]) == 1 else ()
        keys.append(key(name, color, dash=dash, limit=48))
        _draw_baseline(axes, other, color=color, dash=dash, maximize=maximize)
    if len(points.failed):
        (crosses,) = axes.plot(points.failed, np.full(len(points.failed), -0.035), "x", color=_FAILED)
        crosses.set(transform=axes.get_xaxis_transform(), clip_on=False, markeredgewidth=1.4)
        axes.tick_params(axis="x", pad=18)
        keys.append(key("failed", _FAILED, marker="x"))
    if epochs:
        axes.set_xticks(*zip(*time_ticks(span[1], most=8), strict=True))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        if any(trial.cost_s > 0 for trial in trials):
            _draw_elapsed(axes, axis_places(trials, by_time=True))
    return finish(figure, title=title, keys=keys)


def _span(runs: Sequence[Sequence[Trial]], *, by_time: bool) -> tuple[float, float]:
    last = max((max(axis_places(run, by_time=by_time).values()) for run in runs if run), default=1.0)
    room = 0.0 if by_time else 0.3
    return -0.015 * max(last, 1) - room, last * 1.015 + room


def _draw_elapsed(axes: Axes, seconds: Mapping[int, float]) -> None:
    """Ticks of cumulative evaluation time along the top, each at the trial during which it was reached."""
    left, right = axes.get_xlim()
    numbers, ends = list(seconds), list(seconds.values())
    shown: list[tuple[float, str]] = []
    for at, label in time_ticks(ends[-1], most=7):
        x = numbers[int(np.searchsorted(ends, at))]
        if at > 0 and (not shown or x - shown[-1][0] > 0.07 * (right - left)):
            shown.append((x, label))
    twin = axes.twiny()
    twin.grid(visible=False)
    twin.spines[:].set_visible(False)
    twin.set(xlim=(left, right), xlabel="evaluation time")
    twin.set_xticks([x for x, _ in shown], [label for _, label in shown])
    twin.tick_params(length=3, color=HAIR, pad=3)


def _draw_values(axes: Axes, points: _Points, *, unit: str) -> list[Line2D]:
    """Dots in the colours of their fidelities, rings where a constraint is broken; returns their meaning."""
    if not len(points.numbers):
        note = write(axes, 0.5, 0.5, "no finished trial yet", color=MUTED, size=12)
        note.set_transform(axes.transAxes)
        return []
    levels = [int(fidelity) for fidelity in np.unique(points.fidelities)]
    several = len(levels) > 1
    ramp = mpl.colormaps["viridis"](np.linspace(0.82, 0.08, len(levels)))
    keys = []
    for fidelity, tone in zip(levels, ramp, strict=True):
        color = to_hex(tone) if several else _DOT
        name = counted(fidelity, "epoch") if fidelity else "untrained"
        keys.append(key(name if several else unit, color, marker="o"))
        for kept in (False, True):
            chosen = (points.fidelities == fidelity) & (points.kept == kept)
            scatter_within(axes, points.places[chosen], points.values[chosen], color=color, hollow=not kept)
    if not points.kept.all():
        ring = key("breaks a constraint", MUTED if several else _DOT, marker="o")
        ring.set(markerfacecolor=PAPER, markeredgewidth=1.6)
        keys.append(ring)
    return keys


def _draw_baseline(
    axes: Axes, other: _Points, *, color: str, dash: tuple[float, ...], maximize: bool
) -> None:
    new = other.improving(maximize=maximize)
    left, right = axes.get_xlim()
    # A single trial is a level to reach, whenever it was run.
    places = [left if dash else other.places[new][0], *other.places[new][1:], right]
    heights = [*other.values[new], other.values[new][-1]]
    (line,) = axes.step(places, heights, where="post", color=color, linewidth=1.5, zorder=4)
    set_dash(line, dash)


def _draw_best(axes: Axes, points: _Points, *, maximize: bool, unit: str) -> Line2D:
    """The best so far, and in words what it was at the end."""
    new = points.improving(maximize=maximize)
    steps, bests = points.places[new], points.values[new]
    left, right = axes.get_xlim()
    heights = [*bests, bests[-1]]
    (line,) = axes.step([*steps, right], heights, where="post", color=BEST, linewidth=2.4, zorder=5)
    line.set_solid_joinstyle("round")
    x, y = steps[-1], bests[-1]
    axes.plot([x], [y], "o", color=BEST, markersize=9, markeredgecolor=PAPER, markeredgewidth=1.6, zorder=6)
    share = (x - left) / (right - left)
    axes.annotate(
        f"best {y:.4g} · {unit} {points.numbers[new[-1]] + (unit == 'epoch')}",
        (x, y),
        xytext=(0, 13 if maximize else -13),
        textcoords="offset points",
        ha="left" if share < 0.2 else "right" if share > 0.8 else "center",
        va="center_baseline",
        fontsize=11.5,
        fontweight="bold",
        color=BEST,
        bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        zorder=10,
    )
    return key("best so far", BEST)


_VERTICES, _EARLY = 500, 60
_MARKS = "osD^vp<>"


@dataclass(frozen=True, eq=False)
class Bands:
    """One strategy's curve over repeated runs; no number is NaN.

    x: [T] evaluations or seconds, increasing.
    mean: [T] best so far, averaged over the runs.
    low, high: [T] the band around it, such as quantiles or a confidence interval.
    """

    x: Column
    mean: Column
    low: Column
    high: Column


@styled
def draw_anytime(
    curves: Mapping[str, Bands],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    subtitle: str = "",
    optimum: float | None = None,
    colors: Sequence[str] = SERIES,
) -> Figure:
    """Draws strategies as lines in shaded bands; up to 8 have colours and marks of their own.

    The axis holds every end and the `optimum`, drawn dashed; a bad start that would flatten them is cut off.
    Curves that fall on the whole are read as something to minimise.

    colors: of the strategies, in their order.
    """
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(fit(clean(xlabel, limit=80), 11, 8))
    axes.set_ylabel(fit(clean(ylabel, limit=80), 11, 4.2))
    bands = list(curves.values())
    _set_limits(axes, bands, [] if optimum is None else [optimum])
    tidy_ticks(axes, most=8, whole=all((band.x == band.x.round()).all() for band in bands))
    keys = []
    for rank, ((name, band), color) in enumerate(zip(curves.items(), cycle(colors), strict=False)):
        mark = _MARKS[rank % len(_MARKS)]
        keys.append(key(name, color))
        keys[-1].set(marker=mark, markersize=7, markeredgecolor=PAPER)
        _draw_band(axes, band, color=color, mark=mark, zorder=4 - 0.1 * rank)
    if optimum is not None:
        axes.axhline(optimum, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2.5)
        keys.append(key("optimum", INK, dash=(2.5, 1.5)))
    return finish(figure, title=title, subtitle=subtitle, keys=keys)


def _set_limits(axes: Axes, bands: Sequence[Bands], levels: Sequence[float]) -> None:
    """Shows every end and all `levels`; the bad side is cut as if the curves were sampled evenly in x."""
    first, last = min(float(b.x[0]) for b in bands), max(float(b.x[-1]) for b in bands)
    room = (last - first) or 50.0 * max(2.0, abs(first))
    axes.set_xlim(first - 0.01 * room, last + 0.015 * room)
    maximize = sum(band.mean[-1] - band.mean[0] for band in bands) >= 0
    grid = np.linspace(first, last, 200)
    sampled = [np.interp(grid[(grid >= b.x[0]) & (grid <= b.x[-1])], b.x, b.mean) for b in bands]
    ends = [float(edge[-1]) for b in bands for edge in (b.low, b.mean, b.high)]
    values = np.concatenate(sampled).tolist()
    axes.set_ylim(*good_limits(values, [*ends, *levels], maximize=maximize, above=0.08))


def _draw_band(axes: Axes, band: Bands, *, color: str, mark: str, zorder: float) -> None:
    last = len(band.x) - 1
    # Few enough vertices for a small file, none lost where curves bend most.
    kept = np.unique(np.concatenate([np.arange(last + 1)[:_EARLY], np.linspace(0, last, _VERTICES).round()]))
    kept = kept.astype(np.int64)
    x = band.x[kept]
    if last:
        axes.fill_between(x, band.low[kept], band.high[kept], color=color, alpha=0.16, linewidth=0, zorder=2)
    else:
        axes.vlines(x, band.low, band.high, color=color, linewidth=5, alpha=0.25, zorder=2)
    axes.plot(x, band.mean[kept], color=color, linewidth=2.0, solid_joinstyle="round", zorder=zorder)
    (end,) = axes.plot(x[-1:], band.mean[-1:], mark, color=color, markersize=7, zorder=zorder, clip_on=False)
    end.set(markeredgecolor=PAPER, markeredgewidth=1.0)
