"""Pictures of a one-shot search's architecture weights: over time, and at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.show.draw.style import (
    HAIR,
    INK,
    MUTED,
    PAPER,
    Heading,
    Key,
    Legend,
    Look,
    clean,
    fit,
    page,
    palette,
    plot_axes,
    set_dash,
    shade,
    text_size,
    tint,
    write,
)

Floats = NDArray[np.floating]
Options = Sequence[str] | Sequence[Sequence[str]]

_MARGIN, _PANEL, _ROW_GAP, _COLUMN_GAP, _CAPTION = 0.35, (1.6, 1.15), 0.36, 0.22, 0.46
_VERTICES = 5000
_CELL = (0.66, 0.34)
_HEAT = "#0072B2"


def draw_alphas(strengths: Floats, *, decisions: Sequence[str], options: Options, title: str = "") -> Figure:
    """Draws how strong every option was after every epoch: one panel per decision, one line per option.

    strengths: [T, E, O] in [0, 1], the mixture weights (not the raw alphas); a row of a decision with fewer
    than O options is read up to its length. options: common to all decisions, or one sequence for each.
    The strongest option of the last epoch is marked and named; the dotted rule is the uniform mixture.
    """
    names = _check(strengths, decisions, options, axes=3)
    looks = palette(name for row in names for name in row)
    columns = min(7, max(1, ceil(sqrt(1.5 * len(decisions)))))
    rows = max(1, ceil(len(decisions) / columns))
    heading = Heading(title)
    across = columns * (_PANEL[0] + _COLUMN_GAP) - _COLUMN_GAP
    inner = max(across + 0.42, heading.width, 4.5)
    legend = Legend([Key(n, look.color, look.dash) for n, look in looks.items()], inner)
    pitch = _PANEL[1] + _CAPTION + _ROW_GAP
    foot = _MARGIN + legend.height + 0.62
    height = foot + rows * pitch - _ROW_GAP + heading.height + _MARGIN
    figure, sheet = page(inner + 2 * _MARGIN, height)
    heading.draw(sheet, _MARGIN, height - _MARGIN)
    legend.draw(sheet, _MARGIN, _MARGIN + legend.height)
    if not decisions or not len(strengths):
        write(sheet, _MARGIN, foot + pitch / 2, "nothing was recorded", color=MUTED, size=12, ha="left")
        return figure
    write(sheet, _MARGIN + 0.42 + across / 2, foot - 0.42, "epoch", size=11, color=MUTED)
    peak = min(1.0, ceil(round(10 * float(np.nanmax(strengths, initial=0.1)), 3)) / 10)
    # Few enough points a line that a whole page of panels stays a small file.
    points = max(8, _VERTICES // sum(map(len, names)))
    for i, name in enumerate(decisions):
        row, column = divmod(i, columns)
        left = _MARGIN + 0.42 + column * (_PANEL[0] + _COLUMN_GAP)
        bottom = foot + (rows - 1 - row) * pitch
        axes = plot_axes(figure, left, bottom, *_PANEL)
        axes.set(ylim=(0, peak), yticks=[0, peak / 2, peak])
        axes.tick_params(labelleft=column == 0, labelbottom=i + columns >= len(decisions))
        winner = _draw_panel(
            axes, strengths[:, i, : len(names[i])], [looks[n] for n in names[i]], points=points
        )
        write(
            sheet,
            left,
            bottom + _PANEL[1] + 0.31,
            fit(clean(name), 10, _PANEL[0], bold=True),
            size=10,
            bold=True,
            ha="left",
        )
        if winner is not None:
            color = shade(winner.color, 0.25)
            write(
                sheet,
                left,
                bottom + _PANEL[1] + 0.115,
                fit(clean(winner.label), 9.5, _PANEL[0]),
                size=9.5,
                color=color,
                ha="left",
            )
    return figure


def _draw_panel(axes: Axes, strengths: Floats, looks: Sequence[Look], *, points: int) -> Look | None:
    """Draws one decision, [T, O], the winner on top; returns the winner's look, None without a number."""
    epochs = np.arange(1, len(strengths) + 1)
    last = np.where(np.isfinite(strengths[-1]), strengths[-1], -1.0)
    best = int(last.argmax()) if len(last) and last.max() >= 0 else None
    kept = np.unique(np.linspace(0, len(epochs) - 1, points).round().astype(int))
    axes.axhline(1 / max(len(looks), 1), color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    for option, look in enumerate(looks):
        won = option == best
        (line,) = axes.plot(epochs[kept], strengths[kept, option], color=look.color, zorder=4 if won else 3)
        line.set_linewidth(2.6 if won else 1.2)
        line.set_alpha(1.0 if won else 0.8)
        if not won:
            set_dash(line, look.dash)
    pad = 0.04 * max(len(epochs) - 1, 1)
    axes.set_xlim(1 - pad / 2, len(epochs) + 2 * pad)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    if best is None:
        return None
    if len(epochs) == 1:  # of which no line is left to see
        for option, look in enumerate(looks):
            axes.plot(epochs, strengths[:, option], "o", color=look.color, markersize=4, alpha=0.8, zorder=3)
    end = (epochs[-1:], strengths[-1:, best])
    axes.plot(
        *end, "o", color=looks[best].color, markersize=7, markeredgecolor=PAPER, zorder=5, clip_on=False
    )
    return looks[best]


def draw_alpha_heatmap(
    strengths: Floats, decisions: Sequence[str], options: Options, *, title: str = ""
) -> Figure:
    """Draws the strengths of one moment as a table: a row per decision, a column per option.

    strengths: [E, O] in [0, 1]; options as for `draw_alphas`. A decision's own options are put under their
    names; what it does not offer stays blank. The strongest option of every row is outlined.
    """
    names = _check(strengths, decisions, options, axes=2)
    columns = {name: i for i, name in enumerate(palette(name for row in names for name in row))}
    looks = palette(columns)
    heading = Heading(title)
    side = max((text_size(clean(d), 10.5)[0] for d in decisions), default=0.5) + 0.15
    head = max((0.62 * text_size(clean(o), 10.5)[0] for o in columns), default=0.0) + 0.3
    slant = max((0.8 * text_size(clean(o), 10.5)[0] for o in columns), default=0.0)
    inner = max(side + len(columns) * _CELL[0] + slant, heading.width, 3.0)
    height = 2 * _MARGIN + heading.height + head + len(decisions) * _CELL[1]
    figure, sheet = page(inner + 2 * _MARGIN, height)
    heading.draw(sheet, _MARGIN, height - _MARGIN)
    left, top = _MARGIN + side, height - _MARGIN - heading.height - head
    for name, column in columns.items():
        color = shade(looks[name].color, 0.25)
        x = left + (column + 0.5) * _CELL[0]
        write(sheet, x, top + 0.12, clean(name), size=10.5, color=color, ha="left", angle=38)
    peak = float(np.nanmax(strengths, initial=1e-9))
    for row, name in enumerate(decisions):
        y = top - (row + 1) * _CELL[1]
        write(sheet, left - 0.12, y + _CELL[1] / 2, clean(name), size=10.5, ha="right")
        values = strengths[row, : len(names[row])]
        places = [left + columns[option] * _CELL[0] for option in names[row]]
        _draw_row(sheet, values, places, y, peak=peak)
    return figure


def _draw_row(sheet: Axes, values: Floats, places: Sequence[float], y: float, *, peak: float) -> None:
    finite = np.where(np.isfinite(values), values, -1.0)
    best = int(finite.argmax()) if len(finite) and finite.max() >= 0 else None
    for option, (value, x) in enumerate(zip(finite, places, strict=True)):
        won = option == best
        share = max(float(value), 0.0) / peak
        cell = Rectangle((x + 0.02, y + 0.02), _CELL[0] - 0.04, _CELL[1] - 0.04, zorder=3 if won else 2)
        cell.set(
            facecolor=tint(_HEAT, 1 - 0.92 * share),
            edgecolor=INK if won else HAIR,
            linewidth=2.0 if won else 0.6,
        )
        sheet.add_patch(cell)
        text = f"{value:.2f}" if value >= 0 else "–"
        color = PAPER if share > 0.66 else INK
        write(sheet, x + _CELL[0] / 2, y + _CELL[1] / 2, text, size=9.5, color=color, bold=won)


def _check(strengths: Floats, decisions: Sequence[str], options: Options, *, axes: int) -> list[list[str]]:
    """The option names of every decision, after checking that everything fits together."""
    names = [[o] if isinstance(o, str) else list(o) for o in options]
    common = all(isinstance(o, str) for o in options)
    each = [[o for row in names for o in row]] * len(decisions) if common else names
    wanted = f"{axes} axes, the last two {len(decisions)} decisions and their options"
    if strengths.ndim != axes or strengths.shape[-2] != len(decisions) or len(each) != len(decisions):
        raise ConfigError(
            f"alphas: got shape {strengths.shape} with {len(each)} option lists, wanted {wanted}"
        )
    if max(map(len, each), default=0) > strengths.shape[-1]:
        raise ConfigError(
            f"alphas: got shape {strengths.shape} with {max(map(len, each))} options, wanted {wanted}"
        )
    finite = strengths[np.isfinite(strengths)]
    if finite.size and (finite.min() < -1e-6 or finite.max() > 1 + 1e-6):
        raise ConfigError(
            f"alphas: got strengths from {finite.min():.3g} to {finite.max():.3g}, "
            "wanted mixture weights in [0, 1]; apply the search's relaxation (such as softmax) first"
        )
    return each
