"""Anytime curves of several strategies: how good the best so far is after how much work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.errors import ConfigError
from nas.show.draw.style import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    Column,
    Heading,
    bad_end,
    clean,
    finite,
    fit,
    padded,
    page,
    plot_axes,
    shade,
    spread,
    text_size,
    tidy_ticks,
    write,
)

_WIDTH, _PLOT, _LEFT, _FOOT, _MARGIN = 10.0, 4.3, 0.95, 1.0, 0.35
_LEADER, _LABEL, _SIZE = 0.3, 1.9, 10.5
_VERTICES, _EARLY = 500, 60
_MARKS = "osD^vp<>"


@dataclass(frozen=True, eq=False)
class Bands:
    """One strategy's curve over repeated runs.

    x: [T] evaluations or seconds, increasing.
    mean: [T] best so far, averaged over the runs.
    low, high: [T] the band around it, such as quantiles or a confidence interval.
    """

    x: Column
    mean: Column
    low: Column
    high: Column


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
    """Draws 1 to 8 strategies as lines in shaded bands, each named at its end.

    The axis holds every end and the `optimum`, drawn dashed; a bad start that would flatten them is cut off.
    Curves that fall on the whole are read as something to minimise. A curve that ends before the others is
    joined to its name by a dotted line.

    colors: of the strategies, in their order.
    """
    bands = _checked(curves, min(len(colors), len(SERIES)))
    best = None if optimum is None else float(finite(optimum, who="optimum", shape=()))
    heading = Heading(title, subtitle)
    names = [fit(clean(name) or "?", _SIZE, _LABEL, bold=True) for name in curves]
    tail = _LEADER + max(text_size(name, _SIZE, bold=True)[0] for name in names) + _MARGIN
    width = max(_WIDTH, heading.width + 2 * _MARGIN)
    inner = width - _LEFT - tail
    height = _FOOT + _PLOT + heading.height + _MARGIN
    figure, sheet = page(width, height)
    heading.draw(sheet, _MARGIN, height - _MARGIN)
    axes = plot_axes(figure, _LEFT, _FOOT, inner, _PLOT)
    axes.set(xlim=_span(bands), ylim=_limits(bands, best))
    tidy_ticks(axes, most=8, whole=all((band.x == band.x.round()).all() for band in bands))
    across, up = fit(clean(xlabel, limit=80), 11, inner), fit(clean(ylabel, limit=80), 11, _PLOT)
    write(sheet, _LEFT + inner / 2, _FOOT - 0.48, across, size=11, color=MUTED)
    write(sheet, 0.24, _FOOT + _PLOT / 2, up, size=11, color=MUTED, angle=90)
    for rank, band in enumerate(bands):
        _draw_band(axes, band, color=colors[rank], mark=_MARKS[rank], above=len(bands) - rank)
    if best is not None:
        _draw_optimum(axes, best)
    _draw_names(axes, names, bands, colors)
    return figure


def _checked(curves: Mapping[str, Bands], most: int) -> list[Bands]:
    if not 1 <= len(curves) <= most:
        raise ConfigError(
            f"curves: got {len(curves)} strategies, wanted 1 to {most}; split them over pictures"
        )
    return [_checked_bands(f"curves[{name!r}]", band) for name, band in curves.items()]


def _checked_bands(who: str, band: Bands) -> Bands:
    x = finite(band.x, who=f"{who}.x", shape=(-1,))
    if not len(x) or not (np.diff(x) > 0).all():
        raise ConfigError(f"{who}.x: got {len(x)} places, wanted at least one, each above the last")
    mean, low, high = (
        finite(values, who=f"{who}.{column}", shape=x.shape)
        for column, values in (("mean", band.mean), ("low", band.low), ("high", band.high))
    )
    if not ((low <= mean) & (mean <= high)).all():
        raise ConfigError(f"{who}.mean: lies outside the band, wanted low <= mean <= high everywhere")
    return Bands(x, mean, low, high)


def _span(bands: list[Bands]) -> tuple[float, float]:
    first, last = (float(x) for x in (min(b.x[0] for b in bands), max(b.x[-1] for b in bands)))
    if first == last:
        return first - max(1.0, abs(first) / 2), last + max(1.0, abs(last) / 2)
    return padded(first, last, below=0.01, above=0.015)


def _limits(bands: list[Bands], optimum: float | None) -> tuple[float, float]:
    """Limits that hold every end; the bad side is cut as if the curves were sampled evenly in x."""
    sign = 1.0 if sum(band.mean[-1] - band.mean[0] for band in bands) >= 0 else -1.0
    grid = np.linspace(min(band.x[0] for band in bands), max(band.x[-1] for band in bands), 200)
    sampled = [
        np.interp(grid[(grid >= b.x[0]) & (grid <= b.x[-1])], b.x, b.mean) for b in bands if len(b.x) > 1
    ]
    ends = [edge[-1:] for b in bands for edge in (b.low, b.mean, b.high)]
    ends += [] if optimum is None else [np.asarray([optimum])]
    bad = min(bad_end(sign * np.concatenate([*sampled, *ends])), *(float(sign * end[0]) for end in ends))
    good = max(float((sign * np.concatenate([*sampled, *ends])).max()), bad)
    low, high = padded(bad, good, below=0.04, above=0.08)
    return (low, high) if sign > 0 else (-high, -low)


def _draw_band(axes: Axes, band: Bands, *, color: str, mark: str, above: int) -> None:
    last = len(band.x) - 1
    # Few enough vertices for a small file, none lost where curves bend most.
    kept = np.unique(np.concatenate([np.arange(last + 1)[:_EARLY], np.linspace(0, last, _VERTICES).round()]))
    kept = kept.astype(np.int64)
    x = band.x[kept]
    if last:
        axes.fill_between(x, band.low[kept], band.high[kept], color=color, alpha=0.16, linewidth=0, zorder=2)
    else:
        axes.vlines(x, band.low, band.high, color=color, linewidth=5, alpha=0.25, zorder=2)
    order = 3 + 0.1 * above
    axes.plot(x, band.mean[kept], color=color, linewidth=2.0, solid_joinstyle="round", zorder=order)
    (end,) = axes.plot(x[-1:], band.mean[-1:], mark, color=color, markersize=7, zorder=order, clip_on=False)
    end.set(markeredgecolor=PAPER, markeredgewidth=1.0)


def _draw_optimum(axes: Axes, optimum: float) -> None:
    axes.axhline(optimum, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2.5)
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    # Starts are bad, so above or below the line's start there is nothing else.
    better = 1 if optimum > (low + high) / 2 else -1
    y = optimum + better * 0.15 * (high - low) / _PLOT
    note = write(axes, left + 0.01 * (right - left), y, "optimum", size=10, color=INK, ha="left")
    note.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 1.0})


def _draw_names(axes: Axes, names: list[str], bands: list[Bands], colors: Sequence[str]) -> None:
    """Names right of the plot at the heights of the curves' ends, moved apart where these are close."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    width = (right - left) / float(axes.get_window_extent().width / axes.figure.dpi)
    ends = [float(band.mean[-1]) for band in bands]
    gap = 0.22 * (high - low) / _PLOT
    places = spread(ends, gap=gap, low=low + gap / 2, high=high - gap / 2)
    for rank, (name, band, place) in enumerate(zip(names, bands, places, strict=True)):
        x, y = float(band.x[-1]), ends[rank]
        if x < right:
            axes.plot([x, right], [y, y], color=colors[rank], linewidth=1.0, linestyle=(0, (1, 2)))
        leader = [right, right + (_LEADER - 0.06) * width]
        axes.plot(leader, [y, place], color=colors[rank], linewidth=1.0, clip_on=False)
        color = shade(colors[rank], 0.25)
        write(axes, right + _LEADER * width, place, name, size=_SIZE, color=color, bold=True, ha="left")
