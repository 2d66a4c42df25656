"""Pictures of searches: the best so far, strategies beside each other, Pareto fronts, trust in estimates."""

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
from matplotlib.ticker import MaxNLocator, MultipleLocator
from numpy.typing import NDArray

from nas.errors import counted
from nas.evaluate.calibration import Estimate
from nas.searchers.pareto import front
from nas.show.draw.style import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    Column,
    clean,
    duration,
    finish,
    fit,
    good_limits,
    key,
    plot,
    scatter_within,
    set_dash,
    shade,
    styled,
    text_size,
    tidy_ticks,
    write,
)
from nas.types import Trial

_WIDTH, _HEIGHT = 9.2, 4.4
"""Inches of a plot."""
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
_MUTED_HUES = ("#5F7F9B", "#B58B4A", "#8B6F96", "#6E9A86", "#8C8C8C")
BEST, BASELINE = "#D55E00", _MUTED_HUES[0]
"""The lines of a search and of what it is compared with first."""
_FAILED, _DOT = "#A0307F", "#0072B2"
_LEVEL, _DASH = (5.0, 2.4), (4.0, 2.4)
"""The dashes of a baseline that is a single trial, and of what is known exactly."""


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


# -- one search, trial by trial -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Points:
    """The trials with a value in the order of their numbers, as columns.

    places: on the horizontal axis. kept: [N] whether each keeps all constraints; others are never the best.
    failed: places of the others.
    """

    trials: Sequence[Trial]
    places: Column
    values: Column
    kept: NDArray[np.bool_]
    failed: Column

    @classmethod
    def of(
        cls, trials: Sequence[Trial], metric: str, broken: Collection[int] = (), *, by_time: bool
    ) -> _Points:
        """The columns of `trials` by `metric`; those with numbers in `broken` break a constraint."""
        places = axis_places(trials, by_time=by_time)
        ended = sorted((t for t in trials if t.state != "running"), key=lambda trial: trial.number)
        done = [t for t in ended if t.state == "done" and isfinite(t.metrics.get(metric, nan))]
        failed = {t.number for t in ended} - {t.number for t in done}
        return cls(
            done,
            np.asarray([places[t.number] for t in done], dtype=np.float64),
            np.asarray([t.metrics[metric] for t in done], dtype=np.float64),
            np.asarray([t.number not in broken for t in done], dtype=np.bool_),
            np.asarray([places[number] for number in sorted(failed)], dtype=np.float64),
        )

    def improving(self, *, maximize: bool) -> NDArray[np.int64]:
        """[K] rows of the trials at which there was a new best."""
        kept = np.flatnonzero(self.kept)
        running = (np.maximum if maximize else np.minimum).accumulate(self.values[kept])
        return np.asarray(kept[np.diff(running, prepend=np.nan) != 0])


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
    """Draws every finished trial as a dot and the best value so far, over the trials' numbers.

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
    points = _Points.of(trials, metric, broken, by_time=epochs)
    others = {name: _Points.of(run, metric, by_time=epochs) for name, run in runs.items()}
    others = {name: other for name, other in others.items() if len(other.values)}
    unit, spent_s = "epoch" if epochs else "trial", sum(trial.cost_s for trial in trials)
    figure, axes = plot(_WIDTH, _HEIGHT)
    xlabel = f"trial · evaluation time {duration(spent_s)} in all" if spent_s else "trial"
    axes.set(xlabel="evaluation time" if epochs else xlabel, ylabel=clean(metric))
    axes.set_xlim(*_span([trials, *(run for run in runs.values() if len(run) > 1)], by_time=epochs))
    ends = [one.values[one.improving(maximize=maximize)][-1:] for one in (points, *others.values())]
    shown = np.concatenate(ends).tolist()
    if len(points.values) or shown:
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
        axes.set_xticks(*zip(*time_ticks(axes.get_xlim()[1], most=8), strict=True))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    return finish(figure, title=title, keys=keys)


def _span(runs: Sequence[Sequence[Trial]], *, by_time: bool) -> tuple[float, float]:
    last = max((max(axis_places(run, by_time=by_time).values()) for run in runs if run), default=1.0)
    room = 0.0 if by_time else 0.3
    return -0.015 * max(last, 1) - room, last * 1.015 + room


def _draw_values(axes: Axes, points: _Points, *, unit: str) -> list[Line2D]:
    """Dots in the colours of their fidelities, rings where a constraint is broken; returns their meaning."""
    if not len(points.values):
        note = write(axes, 0.5, 0.5, "no finished trial yet", color=MUTED, size=12)
        note.set_transform(axes.transAxes)
        return []
    fidelities = np.asarray([trial.fidelity for trial in points.trials])
    levels = np.unique(fidelities).tolist()
    several = len(levels) > 1
    ramp = mpl.colormaps["viridis"](np.linspace(0.82, 0.08, len(levels)))
    keys = []
    for fidelity, tone in zip(levels, ramp, strict=True):
        color = to_hex(tone) if several else _DOT
        name = counted(fidelity, "epoch") if fidelity else "untrained"
        keys.append(key(name if several else unit, color, marker="o"))
        for kept in (False, True):
            chosen = (fidelities == fidelity) & (points.kept == kept)
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
        f"best {y:.4g} · {unit} {points.trials[new[-1]].number + (unit == 'epoch')}",
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


# -- strategies beside each other ----------------------------------------------------------------------

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
    figure, axes = plot(_WIDTH, _HEIGHT)
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
    """Shows every end and all `levels`; the bad side is cut."""
    first, last = min(float(b.x[0]) for b in bands), max(float(b.x[-1]) for b in bands)
    room = (last - first) or 50.0 * max(2.0, abs(first))
    axes.set_xlim(first - 0.01 * room, last + 0.015 * room)
    maximize = sum(band.mean[-1] - band.mean[0] for band in bands) >= 0
    ends = [float(edge[-1]) for b in bands for edge in (b.low, b.mean, b.high)]
    values = np.concatenate([band.mean for band in bands]).tolist()
    axes.set_ylim(*good_limits(values, [*ends, *levels], maximize=maximize, above=0.08))


def _draw_band(axes: Axes, band: Bands, *, color: str, mark: str, zorder: float) -> None:
    x = band.x
    if len(x) > 1:
        axes.fill_between(x, band.low, band.high, color=color, alpha=0.16, linewidth=0, zorder=2)
    else:
        axes.vlines(x, band.low, band.high, color=color, linewidth=5, alpha=0.25, zorder=2)
    axes.plot(x, band.mean, color=color, linewidth=2.0, solid_joinstyle="round", zorder=zorder)
    (end,) = axes.plot(x[-1:], band.mean[-1:], mark, color=color, markersize=7, zorder=zorder, clip_on=False)
    end.set(markeredgecolor=PAPER, markeredgewidth=1.0)


# -- two objectives -----------------------------------------------------------------------------------

_PLOT = 5.0
"""Inches that the plot is high."""
_EVALUATED, _FRONT, _CHOSEN = "#8795A1", "#0072B2", "#D55E00"


@styled
def draw_pareto_front(
    points: Column,
    *,
    names: tuple[str, str],
    maximize: tuple[bool, bool],
    exact: Column | None = None,
    chosen: Sequence[int] = (),
    title: str = "",
    subtitle: str = "",
) -> Figure:
    """Draws architectures as dots over two objectives, with the staircase of the non-dominated ones.

    points: [N, 2] measured values; rows that are not finite are of failed architectures and left out.
    names, maximize: of the two objectives, the horizontal one first.
    exact: [M, 2] the true front, or any points that hold it; drawn as a dashed staircase.
    chosen: rows of `points` to mark, one or a few of the front.

    The axes show the good end of both objectives, three quarters of the front and all that was chosen. What
    is far on the bad side is drawn as triangles at the edge, so that it does not flatten the rest.
    """
    signs = np.where(maximize, 1.0, -1.0)  # turns values into scores, of which larger ones are better
    measured = points[np.isfinite(points).all(axis=1)]
    figure, axes = plot(8.3, _PLOT)
    labels = [_axis_name(name, higher=larger) for name, larger in zip(names, maximize, strict=True)]
    axes.set(xlabel=labels[0], ylabel=labels[1])
    if not len(measured):
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
        write(axes, 0.5, 0.5, "no finished trial yet", color=MUTED, size=12)
        return finish(figure, title=title, subtitle=subtitle)
    found = _non_dominated(measured, signs)
    truth = np.empty((0, 2)) if exact is None else _non_dominated(exact, signs)
    named = points[list(chosen)]
    across, up = (
        good_limits(
            [*measured[:, i], *truth[:, i]],
            [float(np.quantile(found[:, i], 0.25 if larger else 0.75)), *named[:, i]],
            maximize=larger,
            above=0.12,
        )
        for i, larger in enumerate(maximize)
    )
    axes.set(xlim=across, ylim=up)
    tidy_ticks(axes, most=8)
    scatter_within(axes, *measured.T, color=_EVALUATED)
    keys = [key("evaluated", _EVALUATED, marker="o"), key("front found", _FRONT)]
    axes.step(*found.T, where="pre", color=_FRONT, linewidth=2.0, zorder=5)
    axes.plot(*found.T, "o", color=_FRONT, markersize=6.5, markeredgecolor=PAPER, zorder=6)
    if len(truth):
        axes.step(*truth.T, where="pre", color=INK, linewidth=1.3, linestyle=(0, _DASH), zorder=4)
        keys.append(key("exact front", INK, dash=_DASH))
    if len(named):
        axes.plot(*named.T, "o", color=_CHOSEN, markersize=9, markeredgecolor=PAPER, zorder=7)
        keys.append(key("chosen", _CHOSEN, marker="o"))
    return finish(figure, title=title, subtitle=subtitle, keys=keys)


def _axis_name(name: str, *, higher: bool) -> str:
    direction = f" · {'higher' if higher else 'lower'} is better"
    return fit(clean(name, limit=80), 11, _PLOT - text_size(direction, 11)[0]) + direction


def _non_dominated(values: Column, signs: Column) -> Column:
    """[F, 2] the distinct values of the front of [N, 2], by the score of the first, rising."""
    scores = signs * values
    return signs * np.unique(scores[front(scores)], axis=0)


# -- estimates against the truth ----------------------------------------------------------------------

_ROW, _SIZE = 0.29, 10.5
"""Inches and points of a line of estimates."""


@styled
def draw_rank_correlation(
    estimates: Sequence[Estimate], *, title: str = "", subtitle: str = "", threshold: float | None = None
) -> Figure:
    """Draws Kendall's tau of estimates as dots with 95 % whiskers, the cheapest of every group first.

    Groups stand in the order in which `estimates` names them. The `threshold`, in [-1, 1], is a dashed line.
    """
    groups: dict[str, list[Estimate]] = {estimate.group: [] for estimate in estimates}
    for estimate in sorted(estimates, key=lambda estimate: estimate.cost_s):
        groups[estimate.group].append(estimate)
    figure, axes = plot(4.6, _ROW * (len(estimates) + 1.2 * len(groups) + 1))
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.axvline(0, color=MUTED, linewidth=1.0, zorder=1)
    for x, text in ((1.11, "τ"), (1.28, "cost")):
        write(axes, x, 0, text, color=MUTED, ha="right").set_transform(axes.get_yaxis_transform())
    y, names, colors = 0.0, dict[float, str](), dict[float, str]()
    for color, (group, members) in zip(cycle(SERIES), groups.items(), strict=False):
        if clean(group):
            y += 1.2
            names[y], colors[y] = clean(group), shade(color, 0.25)
        for estimate in members:
            y += 1
            names[y] = fit(clean(estimate.name, limit=40) or "?", _SIZE, 2.6)
            _draw_row(axes, estimate, y, color=color)
    axes.set_yticks(list(names), list(names.values()))
    for at, label in zip(names, axes.get_yticklabels(), strict=True):
        label.set(color=colors.get(at, INK), fontweight="bold" if at in colors else "normal", fontsize=_SIZE)
    ends = [0.0, *(end for estimate in estimates for end in (estimate.tau_low, estimate.tau_high))]
    if threshold is not None:
        ends.append(threshold)
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2)
        write(axes, threshold, 0, f"threshold {threshold:g}")
    axes.set(xlim=(min(ends) - 0.03, max(ends) + 0.03), ylim=(y + 0.7, 0.4))
    axes.set_xlabel("Kendall's τ with 95 % interval")
    axes.xaxis.set_major_locator(MultipleLocator(0.2 if max(ends) - min(ends) > 0.5 else 0.1))
    return finish(figure, title=title, subtitle=subtitle)


def _draw_row(axes: Axes, estimate: Estimate, y: float, *, color: str) -> None:
    tau = estimate.tau
    ends = [[tau - estimate.tau_low], [estimate.tau_high - tau]]
    axes.errorbar(tau, y, xerr=ends, fmt="none", ecolor=color, elinewidth=2, capsize=3.5, alpha=0.7)
    axes.plot(tau, y, "o", color=color, markersize=8, markeredgecolor=PAPER, zorder=4)
    # Columns right of the plot.
    for x, text in ((1.11, f"{tau:z.2f}".replace("-", "−")), (1.28, duration(estimate.cost_s))):
        write(axes, x, y, text, size=_SIZE, ha="right").set_transform(axes.get_yaxis_transform())
