"""How far cheap estimates can be trusted: their rank correlation with full training, beside their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from math import isfinite

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from nas.errors import ConfigError
from nas.show.draw.style import (
    HAIR,
    INK,
    MUTED,
    PAPER,
    SERIES,
    Heading,
    clean,
    fit,
    page,
    plot_axes,
    shade,
    text_size,
    write,
)

_PLOT, _ROW, _COLUMNS, _MARGIN, _FOOT = 5.2, 0.29, 0.3, 0.35, 0.95
_INDENT, _SIDE, _VALUE, _COST = 0.12, 2.6, 0.6, 0.95
_SIZE, _MOST = 10.5, 40
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))


@dataclass(frozen=True)
class Trust:
    """How one estimate ranks architectures.

    name: of the estimate, such as a proxy or a number of epochs.
    tau: Kendall's rank correlation with the truth, in [-1, 1].
    low, high: its 95 % interval.
    cost_s: seconds for one architecture.
    group: estimates of one kind stand together.
    """

    name: str
    tau: float
    low: float
    high: float
    cost_s: float
    group: str


def draw_trust(
    rows: Sequence[Trust], *, title: str = "", subtitle: str = "", threshold: float | None = None
) -> Figure:
    """Draws 1 to 40 estimates as dots with 95 % whiskers, the cheapest of every group first.

    Groups stand in the order in which `rows` names them. The `threshold`, in [-1, 1], is a dashed line.
    """
    _check(rows, threshold)
    groups = {row.group: sorted((r for r in rows if r.group == row.group), key=_by_cost) for row in rows}
    heading = Heading(title, subtitle)
    left = _MARGIN + _INDENT + max(text_size(_shown(row.name), _SIZE)[0] for row in rows) + 0.15
    width = max(left + _PLOT + _VALUE + _COST + _MARGIN, heading.width + 2 * _MARGIN)
    tall = sum(_head(group) + _ROW * len(members) for group, members in groups.items()) + 0.1
    height = _FOOT + tall + _COLUMNS + heading.height + _MARGIN
    figure, sheet = page(width, height)
    heading.draw(sheet, _MARGIN, height - _MARGIN)
    axes = plot_axes(figure, left, _FOOT, _PLOT, tall)
    _frame(axes, rows, threshold, tall=tall)
    top = _FOOT + tall + _COLUMNS / 2 - 0.03
    write(sheet, left + _PLOT / 2, _FOOT - 0.48, "Kendall's τ with 95 % interval", size=11, color=MUTED)
    write(sheet, left + _PLOT + _VALUE, top, "τ", size=_SIZE, color=MUTED, ha="right")
    write(sheet, left + _PLOT + _VALUE + _COST, top, "cost", size=_SIZE, color=MUTED, ha="right")
    y = tall
    for color, (group, members) in zip(cycle(SERIES), groups.items(), strict=False):
        y -= _head(group)
        write(
            sheet,
            _MARGIN,
            _FOOT + y + 0.15,
            clean(group),
            size=_SIZE,
            bold=True,
            color=shade(color, 0.25),
            ha="left",
        )
        for row in members:
            y -= _ROW
            _draw_row(axes, row, y + _ROW / 2, color=color)
            _write_row(sheet, row, left, _FOOT + y + _ROW / 2)
    return figure


def _check(rows: Sequence[Trust], threshold: float | None) -> None:
    if not 1 <= len(rows) <= _MOST:
        raise ConfigError(f"rows: got {len(rows)} estimates, wanted 1 to {_MOST}; split them over pictures")
    for row in rows:
        # A comparison with NaN is false.
        if not -1 <= row.low <= row.tau <= row.high <= 1:
            raise ConfigError(
                f"rows: {row.name!r} has tau {row.tau:g} in [{row.low:g}, {row.high:g}], "
                "wanted -1 <= low <= tau <= high <= 1"
            )
        if not (isfinite(row.cost_s) and row.cost_s >= 0):
            raise ConfigError(f"rows: {row.name!r} has cost_s {row.cost_s:g}, wanted seconds of at least 0")
    if threshold is not None and not -1 <= threshold <= 1:
        raise ConfigError(f"threshold: got {threshold:g}, wanted a rank correlation in [-1, 1]")


def _shown(name: str) -> str:
    return fit(clean(name, limit=40) or "?", _SIZE, _SIDE)


def _by_cost(row: Trust) -> float:
    return row.cost_s


def _head(group: str) -> float:
    """Inches above the rows of a group, for its name if it has one."""
    return 0.38 if clean(group) else 0.1


def _frame(axes: Axes, rows: Sequence[Trust], threshold: float | None, *, tall: float) -> None:
    """Limits that hold 0, every whisker and the threshold; heights are inches from the lowest row."""
    shown = [0.0, *(end for row in rows for end in (row.low, row.high))]
    shown += [] if threshold is None else [threshold]
    axes.set(xlim=(min(shown) - 0.03, max(shown) + 0.03), ylim=(0, tall), yticks=[])
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=HAIR, linewidth=0.7)
    axes.xaxis.set_major_locator(MultipleLocator(0.2 if max(shown) - min(shown) > 0.5 else 0.1))
    axes.axvline(0, color=MUTED, linewidth=1.0, zorder=1)
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2)
        note = write(axes, threshold, tall + _COLUMNS / 2 - 0.03, f"threshold {threshold:g}", size=10)
        place = (threshold - axes.get_xlim()[0]) / (axes.get_xlim()[1] - axes.get_xlim()[0])
        note.set_horizontalalignment("left" if place < 0.1 else "right" if place > 0.9 else "center")


def _draw_row(axes: Axes, row: Trust, y: float, *, color: str) -> None:
    axes.plot([row.low, row.high], [y, y], color=color, linewidth=2.0, alpha=0.6, zorder=3)
    axes.plot([row.low, row.high], [y, y], "|", color=color, markersize=7, markeredgewidth=1.4, zorder=3)
    (dot,) = axes.plot([row.tau], [y], "o", color=color, markersize=8, zorder=4)
    dot.set(markeredgecolor=PAPER, markeredgewidth=1.2)


def _write_row(sheet: Axes, row: Trust, left: float, y: float) -> None:
    write(sheet, _MARGIN + _INDENT, y, _shown(row.name), size=_SIZE, ha="left")
    write(sheet, left + _PLOT + _VALUE, y, f"{row.tau:z.2f}".replace("-", "−"), size=_SIZE, ha="right")
    write(sheet, left + _PLOT + _VALUE + _COST, y, _duration(row.cost_s), size=_SIZE, ha="right")


def _duration(seconds: float) -> str:
    """Two digits or more and the unit that suits them: `"0.5 ms"`, `"12 s"`, `"1.5 h"`."""
    unit, name = next((u, n) for u, n in _UNITS if seconds >= u or n == "ms")
    value = seconds / unit
    return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
