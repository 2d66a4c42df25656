"""Two objectives at once: every architecture, the front that none of them beats, and what it dominates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import cos, radians, sin

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from nas.errors import ConfigError
from nas.searchers.pareto import front
from nas.show.draw.style import (
    INK,
    MUTED,
    PAPER,
    Column,
    Heading,
    Key,
    Legend,
    bad_end,
    clean,
    finite,
    fit,
    padded,
    page,
    plot_axes,
    shade,
    text_size,
    tidy_ticks,
    tint,
    write,
)

_WIDTH, _PLOT, _LEFT, _RIGHT, _MARGIN = 9.0, 5.0, 0.95, 0.4, 0.35
_INNER = _WIDTH - _LEFT - _RIGHT
_DOT, _FRONT, _EXACT, _CHOSEN, _REGION = "#8795A1", "#0072B2", INK, "#D55E00", tint("#0072B2", 0.88)
_DASH = (4.0, 2.4)
_SIZE, _MANY, _OBSTACLES = 10.5, 1500, 2000
_DISTANCES = (0.18, 0.3, 0.5, 0.75, 1.05, 1.4, 1.9, 2.5, 3.2, 4.0)
_ANGLES = (45, 90, 135, 0, 180, -45, -90, -135)


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is drawn, as scores: the objectives turned so that larger is better.

    signs: [2] 1 where larger values are better, -1 where smaller ones are.
    scores: [N, 2] of what was measured; `front` [F, 2] of it.
    exact: [M, 2] the true front, empty when unknown.
    chosen: [K, 2] what is named, and `labels` its names.
    corner: [2] where hypervolume is measured from.
    """

    signs: Column
    scores: Column
    front: Column
    exact: Column
    chosen: Column
    labels: tuple[str, ...]
    corner: Column | None

    @cached_property
    def limits(self) -> Column:
        """[2, 2] the worst and the best score that each axis shows; there must be scores."""
        fronts = np.concatenate([self.front, self.exact])
        everything = np.concatenate([self.scores, fronts])
        limits = []
        for axis in range(2):
            best = float(everything[:, axis].max())
            bad = min(bad_end(everything[:, axis]), float(np.quantile(fronts[:, axis], 0.25)))
            bad = min(bad, *self.chosen[:, axis], best)
            if self.corner is not None and (bad == best or bad - self.corner[axis] <= best - bad):
                bad = min(bad, float(self.corner[axis]))
            limits.append(padded(bad, best, below=0.06, above=0.12))
        return np.asarray(limits)


def draw_front(
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
    chosen: rows of `points` to name on the picture.

    The axes show the good end of both objectives and all that was chosen. What is far on the bad side is
    drawn as triangles at the edge, so that it does not flatten the rest; a far `reference` lies outside.
    """
    scene = _scene(points, maximize, reference=reference, exact=exact, chosen=chosen)
    heading, legend = Heading(title, subtitle), Legend(_keys(scene), _WIDTH - 2 * _MARGIN)
    bottom = _MARGIN + legend.height + 0.75
    height = bottom + _PLOT + heading.height + _MARGIN
    figure, sheet = page(max(_WIDTH, heading.width + 2 * _MARGIN), height)
    heading.draw(sheet, _MARGIN, height - _MARGIN)
    legend.draw(sheet, _MARGIN, _MARGIN + legend.height)
    axes = plot_axes(figure, _LEFT, bottom, _INNER, _PLOT)
    across, up = map(_axis_name, names, maximize)
    middle = _LEFT + _INNER / 2, bottom + _PLOT / 2
    write(sheet, middle[0], bottom - 0.48, across, size=11, color=MUTED)
    write(sheet, 0.24, middle[1], up, size=11, color=MUTED, angle=90)
    if not len(scene.scores):
        axes.set(xticks=[], yticks=[])
        write(sheet, *middle, "no finished trial yet", color=MUTED, size=12)
        return figure
    axes.set_xlim(*sorted(scene.signs[0] * scene.limits[0]))
    axes.set_ylim(*sorted(scene.signs[1] * scene.limits[1]))
    tidy_ticks(axes, most=8)
    _draw_dots(axes, scene)
    _draw_fronts(axes, scene)
    _draw_chosen(axes, scene)
    return figure


def _scene(
    points: ArrayLike,
    maximize: tuple[bool, bool],
    *,
    reference: tuple[float, float] | None,
    exact: ArrayLike | None,
    chosen: Sequence[int],
) -> _Scene:
    rows = np.asarray(points, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise ConfigError(f"points: got shape {rows.shape}, wanted [N, 2], one row for each architecture")
    measured = np.flatnonzero(np.isfinite(rows).all(axis=1))
    for index in chosen:
        if index not in measured:
            raise ConfigError(
                f"chosen: got {index}, wanted rows of points, 0 to {len(rows) - 1}, with values"
            )
    signs = np.where(maximize, 1.0, -1.0)
    kept = list(dict.fromkeys(chosen))
    truth = np.empty((0, 2)) if exact is None else finite(exact, who="exact", shape=(-1, 2))
    return _Scene(
        signs=signs,
        scores=signs * rows[measured],
        front=_non_dominated(signs * rows[measured]),
        exact=_non_dominated(signs * truth),
        chosen=signs * rows[np.asarray(kept, dtype=np.int64)],
        labels=tuple(f"#{index}" for index in kept),
        corner=None if reference is None else signs * finite(reference, who="reference", shape=(2,)),
    )


def _non_dominated(scores: Column) -> Column:
    """[F, 2] the distinct scores of the front of [N, 2], by the first, rising."""
    return np.unique(scores[front(scores)], axis=0)


def _axis_name(name: str, larger: bool) -> str:  # noqa: FBT001 - mapped over the two objectives
    direction = f" · {'higher' if larger else 'lower'} is better"
    return fit(clean(name, limit=80), 11, _PLOT - text_size(direction, 11)[0]) + direction


def _keys(scene: _Scene) -> list[Key]:
    """The legend's entries: only of what there is."""
    if not len(scene.scores):
        return []
    keys = [Key("evaluated", _DOT, mark="dot"), Key("front found", _FRONT)]
    keys += [Key("exact front", _EXACT, _DASH)] if len(scene.exact) else []
    keys += [Key("chosen", _CHOSEN, mark="dot")] if len(scene.chosen) else []
    if scene.corner is not None:
        keys.append(Key("hypervolume", _REGION, mark="box"))
        if (scene.corner > scene.limits[:, 0]).all():
            keys.append(Key("reference", MUTED, mark="cross"))
    return keys


def _draw_dots(axes: Axes, scene: _Scene) -> None:
    """Faint dots, and triangles at the edge for what is too bad to show."""
    low, high = scene.limits.T
    beyond = scene.scores < low
    shown = scene.signs * np.maximum(scene.scores, low + 0.02 * (high - low))
    out = "<" if scene.signs[0] > 0 else ">", "v" if scene.signs[1] > 0 else "^"
    groups = (
        (~beyond.any(axis=1), "o", 4.5),
        (beyond[:, 1], out[1], 4.5),
        (beyond[:, 0] & ~beyond[:, 1], out[0], 4.5),
    )
    for chosen, marker, size in groups:
        (dots,) = axes.plot(
            *shown[chosen].T, marker, color=_DOT, markersize=size, markeredgewidth=0, zorder=3
        )
        dots.set_alpha(0.45)
        if len(shown) > _MANY:
            # One picture of the dots is a smaller file than the dots.
            dots.set(rasterized=True, markersize=0.5 * size)


def _staircase(front: Column) -> Column:
    """[2 F - 1, 2] the corners of the line under which `front`, [F, 2] by the first score, dominates."""
    return np.stack([np.repeat(front[:, 0], 2)[:-1], np.repeat(front[:, 1], 2)[1:]], axis=1)


def _draw_fronts(axes: Axes, scene: _Scene) -> None:
    if scene.corner is not None:
        _draw_region(axes, scene, scene.corner)
    if len(scene.exact):
        line = scene.signs * _staircase(scene.exact)
        axes.plot(*line.T, color=_EXACT, linewidth=1.3, linestyle=(0, _DASH), zorder=4)
    axes.plot(*(scene.signs * _staircase(scene.front)).T, color=_FRONT, linewidth=2.0, zorder=5)
    (marks,) = axes.plot(*(scene.signs * scene.front).T, "o", color=_FRONT, markersize=6.5, zorder=6)
    marks.set(markeredgecolor=PAPER, markeredgewidth=1.0)


def _draw_region(axes: Axes, scene: _Scene, corner: Column) -> None:
    """Shades what the front dominates up to the reference point."""
    better = scene.front[(scene.front > corner).all(axis=1)]
    if len(better):
        first, last = (corner[0], better[0, 1]), (better[-1, 0], corner[1])
        outline = np.concatenate([[corner, first], _staircase(better), [last]])
        axes.fill(*(scene.signs * outline).T, color=_REGION, linewidth=0, zorder=0.2)
    axes.plot(*(scene.signs * corner)[:, None], "x", color=MUTED, markersize=7, markeredgewidth=1.6, zorder=4)


def _draw_chosen(axes: Axes, scene: _Scene) -> None:
    """Names what was chosen in places where nothing else is, near it."""
    corner = np.asarray([axes.get_xlim()[0], axes.get_ylim()[0]])
    inch = np.ptp(scene.limits, axis=1) / (_INNER, _PLOT)
    spots, dots = ((scene.signs * s - corner) / inch for s in (scene.chosen, scene.scores))
    sizes = [text_size(label, _SIZE, bold=True) for label in scene.labels]
    for spot, label, place in zip(spots, scene.labels, _places(spots, dots, sizes), strict=True):
        line = corner + inch * np.stack([spot, place])
        axes.plot(*line.T, color=_CHOSEN, linewidth=1.0, zorder=6.5)
        note = write(axes, line[1, 0], line[1, 1], label, size=_SIZE, color=shade(_CHOSEN, 0.2), bold=True)
        note.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 1.0})
    (marks,) = axes.plot(*(scene.signs * scene.chosen).T, "o", color=_CHOSEN, markersize=9, zorder=7)
    marks.set(markeredgecolor=PAPER, markeredgewidth=1.4)


def _places(spots: Column, dots: Column, sizes: Sequence[tuple[float, float]]) -> list[Column]:
    """The centres in inches of labels near `spots` [K, 2] that keep off the edges, the spots and each other.

    dots: [N, 2] what should not be covered where it can be helped.
    sizes: width and height of each label.
    """
    soft = dots[:: 1 + len(dots) // _OBSTACLES]
    taken = [Bbox.from_bounds(x - 0.09, y - 0.09, 0.18, 0.18) for x, y in spots]
    centres = []
    for spot, size in zip(spots, sizes, strict=True):
        free = [(cost, box) for cost, box in _ring(spot, size) if not box.count_overlaps(taken)]
        if not free:
            raise ConfigError(f"chosen: there is no room to name {len(spots)} architectures; choose fewer")
        _, box = min(free, key=lambda item: item[0] + 0.1 * _covered(item[1], soft))
        taken.append(box)
        centres.append(np.asarray([box.x0 + box.x1, box.y0 + box.y1]) / 2)
    return centres


def _ring(spot: Column, size: tuple[float, float]) -> Iterator[tuple[float, Bbox]]:
    """Places around `spot` on the plot for a label, each with its distance in inches."""
    for distance, angle in product(_DISTANCES, map(radians, _ANGLES)):
        towards = np.round([cos(angle), sin(angle)], 6)
        low = spot + distance * towards + (np.sign(towards) - 1) / 2 * size
        box = Bbox([low, low + size]).padded(0.04)
        if min(box.x0, box.y0) >= 0 and box.x1 <= _INNER and box.y1 <= _PLOT:
            yield distance, box


def _covered(box: Bbox, dots: Column) -> int:
    return int(box.count_contains(dots))
