"""Trade-offs: architectures over two objectives with their Pareto front; estimates by rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from nas.evaluate.calibration import Estimate
from nas.searchers.pareto import front
from nas.show.draw.style import (
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
    shade,
    styled,
    text_size,
    tidy_ticks,
    tint,
    write,
)

Limits = tuple[float, float]
_PLOT = 5.0
"""Inches that the plot is high."""
_DOT, _FRONT, _EXACT, _CHOSEN, _REGION = "#8795A1", "#0072B2", INK, "#D55E00", tint("#0072B2", 0.88)
_DASH = (4.0, 2.4)


@styled
def draw_pareto_front(
    points: Column,
    *,
    names: tuple[str, str],
    maximize: tuple[bool, bool],
    reference: tuple[float, float] | None = None,
    exact: Column | None = None,
    chosen: Sequence[int] = (),
    title: str = "",
    subtitle: str = "",
) -> Figure:
    """Draws architectures as dots over two objectives, with the staircase of the non-dominated ones.

    points: [N, 2] measured values; rows that are not finite are of failed architectures and left out.
    names, maximize: of the two objectives, the horizontal one first.
    reference: the corner that hypervolume is measured from; what the front dominates of it is shaded.
    exact: [M, 2] the true front, or any points that hold it; drawn as a dashed staircase.
    chosen: rows of `points` to name on the picture, one or a few of the front.

    The axes show the good end of both objectives and all that was chosen. What is far on the bad side is
    drawn as triangles at the edge, so that it does not flatten the rest; a far `reference` lies outside.
    """
    signs = np.where(maximize, 1.0, -1.0)  # turns values into scores, of which larger ones are better
    measured = points[np.isfinite(points).all(axis=1)]
    figure = Figure(figsize=(9, _PLOT + 1.2), layout="constrained")
    axes = figure.subplots()
    labels = [_axis_name(name, higher=larger) for name, larger in zip(names, maximize, strict=True)]
    axes.set(xlabel=labels[0], ylabel=labels[1])
    if not len(measured):
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
        write(axes, 0.5, 0.5, "no finished trial yet", color=MUTED, size=12)
        return finish(figure, title=title, subtitle=subtitle)
    found = _non_dominated(measured, signs)
    truth = np.empty((0, 2)) if exact is None else _non_dominated(exact, signs)
    rows = list(dict.fromkeys(chosen))
    columns = zip(np.concatenate([measured, truth]).T, found.T, points[rows].T, strict=True)
    references = (np.nan, np.nan) if reference is None else reference
    across, up = (
        _limits(*column, larger=larger, reference=corner)
        for column, larger, corner in zip(columns, maximize, references, strict=True)
    )
    axes.set(xlim=across, ylim=up)
    tidy_ticks(axes, most=8)
    scatter_within(axes, *measured.T, color=_DOT)
    keys = [key("evaluated", _DOT, marker="o"), key("front found", _FRONT)]
    axes.plot(*_staircase(found).T, color=_FRONT, linewidth=2.0, zorder=5)
    axes.plot(*found.T, "o", color=_FRONT, markersize=6.5, markeredgecolor=PAPER, zorder=6)
    if len(truth):
        axes.plot(*_staircase(truth).T, color=_EXACT, linewidth=1.3, linestyle=(0, _DASH), zorder=4)
        keys.append(key("exact front", _EXACT, dash=_DASH))
    if rows:
        _draw_chosen(axes, {f"#{row}": points[row] for row in rows}, signs)
        keys.append(key("chosen", _CHOSEN, marker="o"))
    if reference is not None:
        _draw_region(axes, found, np.asarray(reference), signs)
        keys.append(key("hypervolume", _REGION, marker="s"))
        if axes.viewLim.contains(*reference):
            keys.append(key("reference", MUTED, marker="x"))
    return finish(figure, title=title, subtitle=subtitle, keys=keys)


def _axis_name(name: str, *, higher: bool) -> str:
    direction = f" · {'higher' if higher else 'lower'} is better"
    return fit(clean(name, limit=80), 11, _PLOT - text_size(direction, 11)[0]) + direction


def _non_dominated(values: Column, signs: Column) -> Column:
    """[F, 2] the distinct values of the front of [N, 2], by the score of the first, rising."""
    scores = signs * values
    return signs * np.unique(scores[front(scores)], axis=0)


def _limits(values: Column, found: Column, named: Column, *, larger: bool, reference: float) -> Limits:
    """Of one objective: they show three quarters of the front, what is named, and a near `reference`.

    reference: NaN where there is none.
    """
    shown = [float(np.quantile(found, 0.25 if larger else 0.75)), *named.tolist()]
    low, high = good_limits(values.tolist(), shown, maximize=larger, above=0.12)
    room = high - low if np.ptp(values) else np.inf
    if low - room <= reference <= high + room:
        return good_limits(values.tolist(), [*shown, reference], maximize=larger, above=0.12)
    return low, high


def _staircase(points: Column) -> Column:
    """[2 F - 1, 2] the corners of the line under which a front, [F, 2] by the first score, dominates."""
    return np.stack([np.repeat(points[:, 0], 2)[:-1], np.repeat(points[:, 1], 2)[1:]], axis=1)


def _draw_region(axes: Axes, found: Column, corner: Column, signs: Column) -> None:
    """Shades what the front dominates up to the reference point."""
    better = found[(signs * found > signs * corner).all(axis=1)]
    if len(better):
        first, last = (corner[0], better[0, 1]), (better[-1, 0], corner[1])
        outline = np.concatenate([[corner, first], _staircase(better), [last]])
        axes.fill(*outline.T, color=_REGION, linewidth=0, zorder=0.2)
    axes.plot(*corner[:, None], "x", color=MUTED, markersize=7, markeredgewidth=1.6, zorder=4)


def _draw_chosen(axes: Axes, points: dict[str, Column], signs: Column) -> None:
    """Names what was chosen towards the good corner, where nothing is beyond the front."""
    for rank, (label, (x, y)) in enumerate(points.items()):
        away = signs * (18 + 16 * (rank % 3))
        axes.plot(x, y, "o", color=_CHOSEN, markersize=9, markeredgecolor=PAPER, zorder=7)
        axes.annotate(
            label,
            (x, y),
            xytext=(float(away[0]), float(away[1])),
            textcoords="offset points",
            ha="center",
            va="center",
            fontweight="bold",
            color=shade(_CHOSEN, 0.2),
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0},
            arrowprops={"arrowstyle": "-", "color": _CHOSEN},
            zorder=6.5,
        )


_ROW, _SIZE = 0.29, 10.5
"""Inches and points of a line of estimates."""
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))


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
    figure = Figure(figsize=(9, 1.7 + _ROW * (len(estimates) + 1.2 * len(groups))), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.axvline(0, color=MUTED, linewidth=1.0, zorder=1)
    _write_columns(axes, 0, "τ", "cost", color=MUTED)
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
    tau, cost = estimate.tau, estimate.cost_s
    ends = [[tau - estimate.tau_low], [estimate.tau_high - tau]]
    axes.errorbar(tau, y, xerr=ends, fmt="none", ecolor=color, elinewidth=2, capsize=3.5, alpha=0.7)
    axes.plot(tau, y, "o", color=color, markersize=8, markeredgecolor=PAPER, zorder=4)
    # Two digits or more in the unit that suits: "0.5 ms", "12 s", "1.5 h".
    unit, name = next((u, n) for u, n in _UNITS if cost >= u or n == "ms")
    took = f"{cost / unit:.{int(cost < 10 * unit)}f} {name}"
    _write_columns(axes, y, f"{tau:z.2f}".replace("-", "−"), took, color=INK)


def _write_columns(axes: Axes, y: float, tau: str, cost: str, *, color: str) -> None:
    """What stands right of the plot, in the line at height `y`."""
    for x, text in ((1.11, tau), (1.28, cost)):
        note = write(axes, x, y, text, size=_SIZE, color=color, ha="right")
        note.set_transform(axes.get_yaxis_transform())
