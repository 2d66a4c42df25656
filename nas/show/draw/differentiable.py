"""Differentiable searches: how the alphas moved, and the diagnostics by which a collapse is seen coming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, isfinite, sqrt

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.files.schemas import EpochRecord
from nas.show.draw.style import (
    HAIR,
    INK,
    MUTED,
    PAPER,
    SERIES,
    Column,
    Look,
    clean,
    finish,
    fit,
    key,
    nothing_recorded,
    palette,
    plot,
    set_dash,
    shade,
    styled,
    tidy_ticks,
    tint,
    write,
)

Floats = NDArray[np.floating]
Options = Sequence[str] | Sequence[Sequence[str]]
Panels = NDArray[np.object_]

_PANEL = (1.6, 1.15)
"""Inches of one panel of alphas."""
_VERTICES = 5000
_CELL = (0.66, 0.34)


def _panels(rows: int, columns: int, *, size: tuple[float, float], gaps: tuple[float, float]) -> Panels:
    """[rows, columns] axes of this size with these gaps, in inches."""
    (width, height), (across, down) = size, gaps
    figure = Figure(figsize=(columns * (width + across) - across, rows * (height + down) - down))
    full = {"left": 0.0, "right": 1.0, "bottom": 0.0, "top": 1.0}
    spaces = {"wspace": across / width, "hspace": down / height}
    return np.asarray(figure.subplots(rows, columns, squeeze=False, gridspec_kw=full | spaces))


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
    grid = _panels(ceil(len(decisions) / columns), columns, size=_PANEL, gaps=(0.4, 0.75))
    peak = min(1.0, ceil(round(10 * float(np.nanmax(strengths, initial=0.1)), 3)) / 10)
    # Few enough points a line that a whole page of panels stays a small file.
    points = max(8, _VERTICES // sum(map(len, names)))
    for i, axes in enumerate(grid.flat):
        if i >= len(decisions):
            axes.remove()
            continue
        axes.set(ylim=(0, peak), yticks=[0, peak / 2, peak])
        axes.tick_params(labelleft=i % columns == 0, labelbottom=i + columns >= len(decisions))
        axes.set_title(fit(clean(decisions[i]), 10, _PANEL[0], bold=True), fontsize=10, y=1, pad=18)
        own = [looks[name] for name in names[i]]
        winner = _draw_options(axes, strengths[:, i, : len(own)], own, points=points)
        if winner is not None:
            text, color = fit(clean(winner.label), 9.5, _PANEL[0]), shade(winner.color, 0.25)
            axes.annotate(text, (0, 1), (0, 5), "axes fraction", "offset points", color=color, fontsize=9.5)
    grid[-1, 0].set_xlabel("epoch")
    keys = [key(name, look.color, dash=look.dash) for name, look in looks.items()]
    return finish(grid[0, 0].figure, title=title, keys=keys)


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
    figure, axes = plot(len(columns) * _CELL[0], len(decisions) * _CELL[1])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    colors = LinearSegmentedColormap.from_list("strength", [tint(SERIES[0], 1.0), tint(SERIES[0], 0.08)])
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


# -- diagnostics --------------------------------------------------------------------------------------

BAD, _MAIN, _OTHER, _REST = SERIES[1], SERIES[0], SERIES[2], SERIES[7]
_HUES = (SERIES[0], SERIES[3], SERIES[4])
"""Kinds of cell; what is bad has a colour of its own."""
_DASHED = (3.2, 1.6)
_MANY = 150
"""Records above which single ones cannot be told apart."""
_LISTED, _LINE = 8, 17
"""Events that are listed, and points of a line."""


class _Records:
    """The records of the epochs as columns, and lines over their numbers in the axes of one panel.

    epochs: [T] how far the search was. backs: [K] the first record after each return to an earlier epoch.
    """

    def __init__(self, records: Sequence[EpochRecord]) -> None:
        self.records = records
        self.epochs = np.asarray([record.epoch for record in records], dtype=np.int64)
        self.backs = np.flatnonzero(np.diff(self.epochs) <= 0) + 1

    def column(self, name: str) -> Column:
        """[T] what was measured, NaN where it was not."""
        return np.asarray([getattr(record, name) for record in self.records], dtype=np.float64)

    def broken(self, values: Column) -> tuple[Column, Column]:
        """Numbers of the records and values, with a gap wherever the search went back."""
        numbers = np.arange(1.0, len(self.records) + 1)
        return np.insert(numbers, self.backs, self.backs + 0.5), np.insert(values, self.backs, np.nan)

    def line(self, axes: Axes, values: Column, color: str, *, width: float = 1.8, dash: bool = False) -> None:
        """A line with gaps, its values as dots where these can be told apart."""
        many = len(self.records) > _MANY
        (line,) = axes.plot(*self.broken(values), color=color, linewidth=0.6 * width if many else width)
        line.set(marker="" if many else "o", markersize=1.4 * width, zorder=3)
        set_dash(line, _DASHED if dash else ())

    def undone(self) -> NDArray[np.int64]:
        """[K, 2] the first record, and the one after the last, of each stretch that was gone back on."""
        least = np.minimum.accumulate(self.epochs[::-1])[::-1]
        undone = np.append(self.epochs[:-1] >= least[1:], False)
        return np.flatnonzero(np.diff(undone, prepend=False)).reshape(-1, 2)

    def events(self) -> list[tuple[int, str]]:
        """Every event by the index of its record, and every return to an earlier epoch that none tells of."""
        found = [(i, event) for i, record in enumerate(self.records) for event in record.events]
        silent = set((self.backs - 1).tolist()) - {index for index, _ in found}
        told = [(i, f"epoch {self.epochs[i]} was followed by epoch {self.epochs[i + 1]}") for i in silent]
        return sorted([*found, *told], key=lambda event: event[0])


@styled
def draw_diagnostics(epochs: Sequence[EpochRecord], *, title: str = "") -> Figure:
    """Draws six panels over the number of the record, and lists what happened.

    epochs: a record of each epoch in the order of training, undone ones included; NaN is unmeasured. One that
        is not further than the last shows that the search went back.
    What is bad is orange. Rules stand where something happened, solid ones where the search went back; the
    epochs that it undid lie on grey.
    """
    if not epochs:
        return nothing_recorded(title)
    records = _Records(epochs)
    events = records.events()
    grid = _panels(2, 3, size=(3.2, 1.3), gaps=(0.55, 1.15))
    for axes, (name, caption, draw) in zip(grid.flat, _PANELS, strict=True):
        axes.set_title(name, y=1, pad=36)
        axes.annotate(caption, (0, 1), (0, 23), "axes fraction", "offset points", color=MUTED, fontsize=9.5)
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        _write_keys(axes, draw(axes, records))
        _mark(axes, records, [index for index, _ in events])
    grid[1, 1].set_xlabel("record, one for every epoch in the order of training")
    lines = [f"record {i + 1}, epoch {records.epochs[i]}:   {clean(text, limit=100)}" for i, text in events]
    if len(lines) > _LISTED:
        lines[_LISTED:] = [f"and {len(lines) - _LISTED} more"]
    for place, line in enumerate(lines):
        below = (0, -62 - _LINE * place)
        grid[1, 0].annotate(fit(line, 10, 10.5), (0, 0), below, "axes fraction", "offset points", fontsize=10)
    keys = [key("a bad sign", tint(BAD, 0.65), marker="s")]
    if len(records.backs):
        keys += [key("the search went back", INK), key("undone epochs", tint(MUTED, 0.8), marker="s")]
    if {index + 1 for index, _ in events} - set(records.backs.tolist()):
        keys.append(key("other event", MUTED, dash=(1.0, 1.4)))
    return finish(grid[0, 0].figure, title=title, keys=keys)


def _write_keys(axes: Axes, keys: Sequence[Line2D]) -> None:
    """What the lines of a panel are, above it; nothing was measured where there are none."""
    if not keys:
        axes.set_yticks([])
        note = write(axes, 0.5, 0.5, "not measured", size=11, color=MUTED)
        note.set(transform=axes.transAxes, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 2.0})
        return
    spacing = {"handlelength": 1.5, "handletextpad": 0.4, "columnspacing": 1.2, "fontsize": 9.5}
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.02), "ncols": len(keys)}
    axes.legend(handles=keys, labelcolor="linecolor", **place, **spacing)


def _mark(axes: Axes, records: _Records, events: Sequence[int]) -> None:
    """What was undone, and where something happened."""
    for start, end in records.undone():
        axes.axvspan(start + 0.5, end + 0.5, color=MUTED, alpha=0.2, linewidth=0, zorder=0.6)
    backs = set(records.backs.tolist())
    for back, color, dash in ((True, INK, "solid"), (False, MUTED, "dotted")):
        places = sorted({index + 1.5 for index in events if (index + 1 in backs) == back})
        rules = axes.vlines(places, 0, 1, color=color, linewidth=0.9, linestyle=dash, zorder=2)
        rules.set_transform(axes.get_xaxis_transform())


def _last(values: Column) -> float:
    """The last value that is not NaN, else NaN."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")


def _shown(value: float) -> str:
    return f"{value:z.2f}".replace("-", "−") if isfinite(value) else "not measured"


def _draw_skips(axes: Axes, records: _Records) -> list[Line2D]:
    """The share of every kind of cell, the largest three named; the kind outside cells is empty."""
    kinds = dict.fromkeys(kind for record in records.records for kind in record.skip_shares)
    shares = {k: np.asarray([r.skip_shares.get(k, np.nan) for r in records.records]) for k in kinds}
    shares = {kind: share for kind, share in shares.items() if np.isfinite(share).any()}
    axes.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1])
    axes.axhspan(0.5, 1.05, color=tint(BAD, 0.9), linewidth=0, zorder=0.5)
    ranked = sorted(shares, key=lambda kind: -_last(shares[kind]))
    for kind in ranked[3:]:
        records.line(axes, shares[kind], _REST, width=1.0)
    keys = [key(f"{len(ranked) - 3} others", _REST)] if len(ranked) > 3 else []
    # Shares are often equal; a thin dashed line shows the thick one below it.
    for rank, (kind, color) in enumerate(zip(ranked[:3], _HUES, strict=False)):
        name = fit(clean(kind) or "?", 9.5, 0.6) if kind else "outside"
        text = f"{name} {_shown(_last(shares[kind]))}" if len(ranked) < 3 else name
        keys.insert(rank, key(text, color, dash=_DASHED if rank else ()))
        records.line(axes, shares[kind], color, width=1.6 if rank else 2.6, dash=rank > 0)
    return keys


def _draw_entropy(axes: Axes, records: _Records) -> list[Line2D]:
    axes.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1])
    return _draw_only(axes, records, records.column("alpha_entropy"))


def _draw_only(axes: Axes, records: _Records, values: Column) -> list[Line2D]:
    """The one line of a panel."""
    records.line(axes, values, _MAIN)
    return [key(f"last {_shown(_last(values))}", _MAIN)] if np.isfinite(values).any() else []


def _draw_matching(axes: Axes, records: _Records) -> list[Line2D]:
    values = records.column("gradient_matching")
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    reach = next((reach for reach in (0.25, 0.5) if largest <= reach), 1.0)
    axes.set(ylim=(-1.05 * reach, 1.05 * reach), yticks=[-reach, 0, reach])
    axes.axhspan(-1.05 * reach, 0, color=tint(BAD, 0.9), linewidth=0, zorder=0.5)
    return _draw_only(axes, records, values)


def _draw_eigenvalue(axes: Axes, records: _Records) -> list[Line2D]:
    """The dominant eigenvalue, its running mean, the level above which that is alarming, dots where it is."""
    values = np.abs(records.column("eigenvalue"))
    mean, alarm = records.column("eigenvalue_mean"), records.column("eigenvalue_alarm")
    if not np.isfinite(values).any():
        return []
    _scale(axes, np.concatenate([values, alarm]))
    if not np.isfinite(mean).any():
        records.line(axes, values, _MAIN)
        return [key(f"last {_last(values):.3g}", _MAIN)]
    records.line(axes, values, tint(_MAIN, 0.6), width=1.0)
    records.line(axes, mean, _MAIN)
    keys = [key(f"mean {_last(mean):.3g}", _MAIN)]
    if np.isfinite(alarm).any():
        keys.append(key(f"alarm at {_last(alarm):.3g}", BAD, dash=_DASHED))
        records.line(axes, alarm, BAD, width=1.0, dash=True)
        over = np.flatnonzero(mean > alarm)
        axes.plot(over + 1, mean[over], "o", color=BAD, markersize=4, zorder=4.5)
    return keys


def _scale(axes: Axes, values: Column) -> None:
    """From 0, or logarithmic where a few values would flatten the rest."""
    known = values[values > 0]
    top = float(known.max(initial=0.0)) or 1.0
    if len(known) and top > 30 * float(np.median(known)):
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(max(0.7 * float(known.min()), 1e-6 * top), 1.5 * top)
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(LogLocator(subs=()))
    else:
        axes.set_ylim(-0.04 * top, 1.08 * top)
        tidy_ticks(axes, most=4)


def _draw_accuracy(axes: Axes, records: _Records) -> list[Line2D]:
    """The supernet and its discretised architecture; orange between them is what discretising costs."""
    whole = records.column("val_acc")
    alone = whole - records.column("discretisation_gap")
    shown = [v for v in (*whole, *alone) if isfinite(v)]
    if not shown:
        return []
    top = next((top for top in (0.1, 0.2, 0.5, 1.0) if max(shown) <= top), max(shown))
    axes.set(ylim=(min(0.0, *shown) - 0.03 * top, 1.05 * top), yticks=[0, top / 2, top])
    x, above = records.broken(whole)
    _, below = records.broken(alone)
    for where, color in ((above >= below, BAD), (above <= below, _OTHER)):
        area = axes.fill_between(x, above, below, where=where.tolist(), interpolate=True)
        area.set(facecolor=color, alpha=0.2, linewidth=0)
    records.line(axes, alone, _OTHER)
    records.line(axes, whole, _MAIN)
    found = (("supernet", whole, _MAIN), ("discretised", alone, _OTHER))
    return [key(f"{name} {_shown(_last(values))}", color, limit=30) for name, values, color in found]


def _draw_changes(axes: Axes, records: _Records) -> list[Line2D]:
    changes = records.column("changes").astype(np.int64)
    axes.bar(np.arange(1, len(changes) + 1), changes, width=0.8, color=_MAIN, linewidth=0, zorder=3)
    axes.set_ylim(0, 1.08 * max(int(changes.max()), 1))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    return [key(f"last {changes[-1]}, {changes.sum()} in all", _MAIN, limit=40)]


_PANELS: Sequence[tuple[str, str, Callable[[Axes, _Records], list[Line2D]]]] = (
    ("Skip share", "share of identities; near 1 is a collapse", _draw_skips),
    ("Entropy", "1 is undecided; should end near 0", _draw_entropy),
    ("Eigenvalue", "curvature in the alphas; growth is a warning", _draw_eigenvalue),
    ("Gradient matching", "training with validation; below 0 they oppose", _draw_matching),
    ("Accuracy", "orange is what discretising costs", _draw_accuracy),
    ("Genotype changes", "decisions that changed; should settle at 0", _draw_changes),
)
"""Title and caption of each panel, and what draws it: that returns what the lines are, nothing where nothing
was measured."""
