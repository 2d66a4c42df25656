"""Pictures of the alphas of a differentiable search: over its epochs, and at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isfinite, sqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.show.draw.style import (
    HAIR,
    INK,
    MARGIN,
    MUTED,
    PAPER,
    Look,
    clean,
    finish,
    fit,
    key,
    nothing_recorded,
    palette,
    set_dash,
    shade,
    styled,
    text_size,
    tint,
    write,
)

Floats = NDArray[np.floating]
Options = Sequence[str] | Sequence[Sequence[str]]

_PANEL = (1.6, 1.15)
"""Inches of one panel of alphas."""
_VERTICES = 5000
_CELL = (0.66, 0.34)
_HEAT = "#0072B2"


@styled
def draw_alphas(strengths: Floats, *, decisions: Sequence[str], options: Options, title: str = "") -> Figure:
    """Draws how strong every option was after every epoch: one panel per decision, one line per option.

    strengths: [T, E, O] in [0, 1], the mixture weights (not the raw alphas); a row of a decision with fewer
    than O options is read up to its length. options: common to all decisions, or one sequence for each.
    The strongest option of the last epoch is marked and named; the dotted rule is the uniform mixture.
    """
    names = _names(strengths, decisions, options, axes=3)
    if not decisions or not len(strengths):
        return nothing_recorded(title)
    looks = palette(name for row in names for name in row)
    columns = min(7, ceil(sqrt(1.5 * len(decisions))))
    rows = ceil(len(decisions) / columns)
    size = columns * (_PANEL[0] + 0.22) + 0.42, rows * (_PANEL[1] + 0.65) + 0.4
    figure = Figure(figsize=(size[0] + 2 * MARGIN, size[1] + 2 * MARGIN), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    peak = min(1.0, ceil(round(10 * float(np.nanmax(strengths, initial=0.1)), 3)) / 10)
    grid[0, 0].set(ylim=(0, peak), yticks=[0, peak / 2, peak])
    # Few enough points a line that a whole page of panels stays a small file.
    points = max(8, _VERTICES // sum(map(len, names)))
    for i, axes in enumerate(grid.flat):
        if i >= len(decisions):
            axes.remove()
            continue
        axes.xaxis.set_visible(i + columns >= len(decisions))
        axes.tick_params(labelbottom=True)
        axes.set_title(fit(clean(decisions[i]), 10, _PANEL[0], bold=True), fontsize=10, y=1, pad=18)
        own = [looks[name] for name in names[i]]
        winner = _draw_options(axes, strengths[:, i, : len(own)], own, points=points)
        if winner is not None:
            text, color = fit(clean(winner.label), 9.5, _PANEL[0]), shade(winner.color, 0.25)
            axes.annotate(text, (0, 1), (0, 5), "axes fraction", "offset points", color=color, fontsize=9.5)
    grid[-1, (len(decisions) - 1) % columns // 2].set_xlabel("epoch")
    return finish(figure, title=title, keys=[key(n, look.color, dash=look.dash) for n, look in looks.items()])


def _draw_options(axes: Axes, strengths: Floats, looks: Sequence[Look], *, points: int) -> Look | None:
    """Draws one decision, [T, O], the winner on top; returns the winner's look, None without a number."""
    epochs = np.arange(1, len(strengths) + 1)
    best = _strongest(strengths[-1])
    kept = np.unique(np.linspace(0, len(epochs) - 1, points).round().astype(int))
    marker = "o" if len(epochs) == 1 else ""  # of a single epoch there is no line to see
    axes.axhline(1 / max(len(looks), 1), color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    for option, look in enumerate(looks):
        (line,) = axes.plot(epochs[kept], strengths[kept, option], color=look.color, marker=marker)
        if option == best:
            line.set(linewidth=2.6, zorder=4)
        else:
            line.set(linewidth=1.2, alpha=0.8, zorder=3, markersize=4)
            set_dash(line, look.dash)
    pad = 0.04 * max(len(epochs) - 1, 1)
    axes.set_xlim(1 - pad / 2, len(epochs) + 2 * pad)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    if best is None:
        return None
    (end,) = axes.plot(epochs[-1:], strengths[-1:, best], "o", color=looks[best].color, zorder=5)
    end.set(markeredgecolor=PAPER, clip_on=False)
    return looks[best]


def _strongest(values: Floats) -> int | None:
    """The option with the largest of [O] numbers, None where none is a number."""
    known = np.where(np.isfinite(values), values, -1.0)
    return int(known.argmax()) if len(known) and known.max() >= 0 else None


@styled
def draw_alpha_heatmap(
    strengths: Floats, decisions: Sequence[str], options: Options, *, title: str = ""
) -> Figure:
    """Draws the strengths of one moment as a table: a row per decision, a column per option.

    strengths: [E, O] in [0, 1]; options as for `draw_alphas`. A decision's own options are put under their
    names; what it does not offer stays blank. The strongest option of every row is outlined.
    """
    names = _names(strengths, decisions, options, axes=2)
    looks = palette(name for row in names for name in row)
    if not looks:
        return nothing_recorded(title)
    columns = {name: i for i, name in enumerate(looks)}
    table = np.full((len(decisions), len(columns)), np.nan)
    for row, own in enumerate(names):
        table[row, [columns[name] for name in own]] = strengths[row, : len(own)]
    peak = float(np.nanmax(table, initial=1e-9))
    side = max(text_size(clean(name), 10.5)[0] for name in decisions)
    slant = max(text_size(clean(name), 10.5)[0] for name in columns)
    size = side + len(columns) * _CELL[0] + slant, len(decisions) * _CELL[1] + 0.62 * slant + 0.3
    figure = Figure(figsize=(size[0] + 2 * MARGIN, size[1] + 2 * MARGIN), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    colors = LinearSegmentedColormap.from_list("strength", [tint(_HEAT, 1.0), tint(_HEAT, 0.08)])
    cells = axes.pcolormesh(np.ma.masked_invalid(table), cmap=colors, vmin=0, vmax=peak)
    cells.set(edgecolor=HAIR, linewidth=0.6)
    axes.invert_yaxis()
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(len(columns)) + 0.5, [clean(name) or "?" for name in columns])
    axes.set_yticks(np.arange(len(decisions)) + 0.5, [clean(name) for name in decisions])
    for label, look in zip(axes.get_xticklabels(), looks.values(), strict=True):
        label.set(color=shade(look.color, 0.25), rotation=38, ha="left", rotation_mode="anchor")
    axes.tick_params(labelsize=10.5)
    axes.tick_params(axis="y", labelcolor=INK)
    for row, own in enumerate(names):
        best = _strongest(strengths[row, : len(own)])
        for option, name in enumerate(own):
            value, x = float(table[row, columns[name]]), columns[name]
            text = f"{value:.2f}" if isfinite(value) else "–"
            color = PAPER if value > 0.66 * peak else INK
            write(axes, x + 0.5, row + 0.5, text, size=9.5, color=color, bold=option == best)
            if option == best:
                frame = Rectangle((x, row), 1, 1, fill=False, edgecolor=INK, linewidth=2, clip_on=False)
                axes.add_patch(frame)
    return finish(figure, title=title)


def _names(strengths: Floats, decisions: Sequence[str], options: Options, *, axes: int) -> list[list[str]]:
    """The option names of every decision, after checking that everything fits together."""
    common = all(isinstance(option, str) for option in options)
    names = [list(map(str, options))] * len(decisions) if common else [list(map(str, own)) for own in options]
    most = max(map(len, names), default=0)
    shape = strengths.shape
    if len(shape) != axes or shape[-2] != len(decisions) or len(names) != len(decisions) or most > shape[-1]:
        raise ConfigError(
            f"alphas: got shape {shape} and {len(names)} lists of up to {most} options, wanted {axes} axes, "
            f"the last two {len(decisions)} decisions and their options"
        )
    finite = strengths[np.isfinite(strengths)]
    if finite.size and (finite.min() < -1e-6 or finite.max() > 1 + 1e-6):
        raise ConfigError(
            f"alphas: got strengths from {finite.min():.3g} to {finite.max():.3g}, "
            "wanted mixture weights in [0, 1]; apply the search's relaxation (such as softmax) first"
        )
    return names
