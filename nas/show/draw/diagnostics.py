"""The diagnostics of a differentiable search, record by record, so that a collapse is seen coming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from nas.files.schemas import EpochRecord
from nas.show.draw.style import (
    INK,
    MARGIN,
    MUTED,
    PAPER,
    SERIES,
    Column,
    clean,
    finish,
    fit,
    key,
    nothing_recorded,
    set_dash,
    styled,
    tidy_ticks,
    tint,
    write,
)

BAD, _MAIN, _OTHER, _REST = SERIES[1], SERIES[0], SERIES[2], SERIES[7]
_HUES = (SERIES[0], SERIES[3], SERIES[4])
"""Kinds of cell; what is bad has a colour of its own."""
_DASHED = (3.2, 1.6)
_MANY = 150
"""Records above which single ones cannot be told apart."""
_COLUMNS, _LISTED, _LINE = 3, 8, 0.24


@dataclass(frozen=True, slots=True)
class _Note:
    """One line under the panels. index: of the record at whose end it happened."""

    number: int
    index: int
    text: str
    back: bool


@styled
def draw_diagnostics(epochs: Sequence[EpochRecord], *, title: str = "") -> Figure:
    """Draws six panels over the number of the record, and lists what happened.

    epochs: a record of each epoch in the order of training, undone ones included; NaN is unmeasured. One that
        is not further than the last shows that the search went back.
    What is bad is orange. Numbered rules stand where something happened, solid ones where the search went
    back; the epochs that it undid lie on grey.
    """
    if not epochs:
        return nothing_recorded(title)
    records = _Records(epochs)
    notes = _notes(records)
    lines = min(len(notes), _LISTED + 1)
    figure = Figure(figsize=(11.2 + 2 * MARGIN, 5.5 + _LINE * lines + 2 * MARGIN), layout="constrained")
    heights = [1.5, 1.5, _LINE * lines] if lines else [1.5, 1.5]
    grid = figure.add_gridspec(len(heights), _COLUMNS, height_ratios=heights)
    for place, panel in enumerate(_PANELS):
        axes = figure.add_subplot(grid[place // _COLUMNS, place % _COLUMNS])
        keys = panel.draw(axes, records)
        _frame(axes, panel, records, keys)
        _mark(axes, records, notes)
        if place == len(_PANELS) - 2:
            axes.set_xlabel("record, one for every epoch in the order of training")
    if notes:
        _write_notes(figure.add_subplot(grid[2, :]), records, notes)
    return finish(figure, title=title, keys=_mark_keys(records, notes))


class _Records:
    """The records of the epochs as columns.

    epochs: [T] how far the search was. backs: [K] the first record after each return to an earlier epoch.
    """

    def __init__(self, records: Sequence[EpochRecord]) -> None:
        self._records = records
        self.epochs = np.asarray([record.epoch for record in records], dtype=np.int64)
        self.backs = np.flatnonzero(np.diff(self.epochs) <= 0) + 1
        self.events = [(i, event) for i, record in enumerate(records) for event in record.events]
        self.linewidth = 1.8 if len(records) <= _MANY else 1.1  # thin lines keep apart where there are many

    def __len__(self) -> int:
        return len(self._records)

    def column(self, name: str) -> Column:
        """[T] what was measured, NaN where it was not."""
        return np.asarray([getattr(record, name) for record in self._records], dtype=np.float64)

    def skip_shares(self) -> dict[str, Column]:
        """[T] for each kind of cell that was measured; the kind of decisions outside cells is empty."""
        kinds = dict.fromkeys(kind for record in self._records for kind in record.skip_shares)
        shares = {k: np.asarray([r.skip_shares.get(k, np.nan) for r in self._records]) for k in kinds}
        return {kind: share for kind, share in shares.items() if np.isfinite(share).any()}

    def broken(self, values: Column) -> tuple[Column, Column]:
        """Numbers of the records and values, with a gap wherever the search went back."""
        numbers = np.arange(1.0, len(self) + 1)
        return np.insert(numbers, self.backs, self.backs + 0.5), np.insert(values, self.backs, np.nan)

    def undone(self) -> NDArray[np.int64]:
        """[K, 2] the first record, and the one after the last, of each stretch that was gone back on."""
        least = np.minimum.accumulate(self.epochs[::-1])[::-1]
        undone = np.append(self.epochs[:-1] >= least[1:], False)
        return np.flatnonzero(np.diff(undone, prepend=False)).reshape(-1, 2)


def _notes(records: _Records) -> list[_Note]:
    """Every event, and every return to an earlier epoch that no event tells of, in order."""
    told, backs = {index for index, _ in records.events}, {int(first) - 1 for first in records.backs}
    epochs = records.epochs
    silent = [(i, f"epoch {epochs[i]} was followed by epoch {epochs[i + 1]}") for i in backs - told]
    every = sorted([*records.events, *silent], key=lambda event: event[0])
    return [_Note(n, index, text, index in backs) for n, (index, text) in enumerate(every, start=1)]


def _frame(axes: Axes, panel: _Panel, records: _Records, keys: Sequence[Line2D]) -> None:
    """Title, caption and keys above a panel, the records along its bottom."""
    axes.set_title(panel.title, y=1, pad=46)
    axes.annotate(panel.caption, (0, 1), (0, 33), "axes fraction", "offset points", color=MUTED, fontsize=9.5)
    axes.set_xlim(0.5, len(records) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if not keys:
        axes.set_yticks([])
        middle = (len(records) + 1) / 2, sum(axes.get_ylim()) / 2
        note = write(axes, *middle, "not measured", size=11, color=MUTED)
        note.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 2.0})
        return
    axes.legend(
        handles=keys,
        ncols=len(keys),
        loc="lower left",
        bbox_to_anchor=(0, 1.16),
        fontsize=9.5,
        handlelength=1.5,
        handletextpad=0.4,
        columnspacing=1.2,
        labelcolor="linecolor",
    )


def _mark(axes: Axes, records: _Records, notes: Sequence[_Note]) -> None:
    """What was undone, and where something happened, with the numbers that find room beside each other."""
    for start, end in records.undone():
        axes.axvspan(start + 0.5, end + 0.5, color=MUTED, alpha=0.2, linewidth=0, zorder=0.6)
    for back, color, dash in ((True, INK, "solid"), (False, MUTED, "dotted")):
        places = sorted({note.index + 1.5 for note in notes if note.back == back})
        rules = axes.vlines(places, 0, 1, color=color, linewidth=0.9, linestyle=dash, zorder=2)
        rules.set_transform(axes.get_xaxis_transform())
    kept: list[tuple[float, float]] = []
    groups = [list(group) for _, group in groupby(notes, key=lambda note: note.index)]
    for group in sorted(groups, key=lambda group: not group[0].back):
        first, last = group[0], group[-1]
        text = f"{first.number}" if first is last else f"{first.number}–{last.number}"
        half = 0.014 * len(text) + 0.01  # shares of the panel's width
        x = min((first.index + 1) / len(records), 1 - half)
        if all(abs(x - other) >= half + room for other, room in kept):
            kept.append((x, half))
            note = write(axes, x, 1.05, text, size=9, color=INK if first.back else MUTED, bold=True)
            note.set_transform(axes.transAxes)


def _write_notes(sheet: Axes, records: _Records, notes: Sequence[_Note]) -> None:
    sheet.set_axis_off()
    sheet.set(xlim=(0, 10.5), ylim=(min(len(notes), _LISTED + 1), 0))
    for line, note in enumerate(notes[:_LISTED]):
        y, place = line + 0.5, f"record {note.index + 1}, epoch {records.epochs[note.index]}"
        text = fit(clean(note.text, limit=200) or "?", 10, 8.2)
        write(sheet, 0, y, str(note.number), color=INK if note.back else MUTED, bold=True, ha="left")
        write(sheet, 0.32, y, fit(place, 10, 1.7), color=MUTED, ha="left")
        write(sheet, 2.2, y, text, ha="left")
    if len(notes) > _LISTED:
        write(sheet, 0.32, _LISTED + 0.5, f"and {len(notes) - _LISTED} more", color=MUTED, ha="left")


def _mark_keys(records: _Records, notes: Sequence[_Note]) -> list[Line2D]:
    """What the colours and rules mean that all panels share."""
    keys = [key("a bad sign", tint(BAD, 0.65), marker="s")]
    if len(records.backs):
        keys += [key("the search went back", INK), key("undone epochs", tint(MUTED, 0.8), marker="s")]
    if any(not note.back for note in notes):
        keys.append(key("other event", MUTED, dash=(1.0, 1.4)))
    return keys


def _draw_line(
    axes: Axes, records: _Records, values: Column, entry: Line2D, *, width: float = 1.0, above: float = 0.0
) -> None:
    """A line with gaps; a value without neighbours is a dot, the last one a large one.

    width: relative to that of other lines.
    """
    x, y = records.broken(values)
    known, order, color = np.isfinite(y), 3 + above, entry.get_color()
    (line,) = axes.plot(x, y, color=color, linewidth=width * records.linewidth, zorder=order)
    if entry.is_dashed():
        set_dash(line, _DASHED)
    alone = _alone(y)
    axes.plot(x[alone], y[alone], "o", color=color, markersize=3, zorder=order)
    if known.any():
        (end,) = axes.plot(x[known][-1], y[known][-1], "o", color=color, markersize=6, zorder=order + 0.5)
        end.set(markeredgecolor=PAPER, clip_on=False)


def _alone(values: Column) -> NDArray[np.bool_]:
    """Which values have no neighbours."""
    known = np.concatenate([[False], np.isfinite(values), [False]])
    return np.asarray(known[1:-1] & ~known[2:] & ~known[:-2])


def _last(values: Column) -> float:
    """The last value that is not NaN, else NaN."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")


def _shown(value: float) -> str:
    return f"{value:z.2f}".replace("-", "−") if isfinite(value) else "not measured"


def _draw_skips(axes: Axes, records: _Records) -> list[Line2D]:
    """The share of every kind of cell; where there are more than three, two are named."""
    shares = records.skip_shares()
    axes.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1])
    if not shares:
        return []
    axes.axhspan(0.5, 1.05, color=tint(BAD, 0.9), linewidth=0, zorder=0.5)
    ranked = sorted(shares, key=lambda kind: -_last(shares[kind]))
    named = list(shares) if len(shares) <= 3 else ranked[:2]
    rest = key(f"{len(shares) - len(named)} others", _REST)
    for kind in (kind for kind in shares if kind not in named):
        _draw_line(axes, records, shares[kind], rest, width=0.6)
    keys = []
    for rank, (kind, color) in enumerate(zip(named, _HUES, strict=False)):
        name = fit(clean(kind) or "?", 9.5, 0.8) if kind else "outside cells"
        text = f"{name} {_shown(_last(shares[kind]))}" if len(shares) < 3 else name
        keys.append(key(text, color, dash=_DASHED if rank else ()))
        # Shares are often equal; a thin dashed line shows the thick one below it.
        _draw_line(axes, records, shares[kind], keys[-1], width=1.0 if rank else 1.5, above=0.1 * (rank + 1))
    return keys if len(named) == len(shares) else [*keys, rest]


def _draw_entropy(axes: Axes, records: _Records) -> list[Line2D]:
    axes.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1])
    return _draw_only(axes, records, records.column("alpha_entropy"))


def _draw_only(axes: Axes, records: _Records, values: Column) -> list[Line2D]:
    """The one line of a panel."""
    if not np.isfinite(values).any():
        return []
    entry = key(f"last {_shown(_last(values))}", _MAIN)
    _draw_line(axes, records, values, entry)
    return [entry]


def _draw_matching(axes: Axes, records: _Records) -> list[Line2D]:
    values = records.column("gradient_matching")
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    reach = next((reach for reach in (0.25, 0.5) if largest <= reach), 1.0)
    axes.set(ylim=(-1.05 * reach, 1.05 * reach), yticks=[-reach, 0, reach])
    keys = _draw_only(axes, records, values)
    if keys:
        axes.axhspan(-1.05 * reach, 0, color=tint(BAD, 0.9), linewidth=0, zorder=0.5)
    return keys


def _draw_eigenvalue(axes: Axes, records: _Records) -> list[Line2D]:
    """The dominant eigenvalue, its running mean, the level above which that is alarming, dots where it is."""
    values = np.abs(records.column("eigenvalue"))
    mean, alarm = records.column("eigenvalue_mean"), records.column("eigenvalue_alarm")
    if not np.isfinite(values).any():
        return []
    _scale(axes, np.concatenate([values, alarm]))
    x, raw = records.broken(values)
    (line,) = axes.plot(x, raw, color=tint(_MAIN, 0.6), linewidth=0.55 * records.linewidth, zorder=2.5)
    line.set(marker="." if len(values) <= _MANY else "", markersize=3)
    if not np.isfinite(mean).any():
        return [key(f"last {_last(values):.3g}", _MAIN)]
    keys = [key(f"mean {_last(mean):.3g}", _MAIN)]
    _draw_line(axes, records, mean, keys[0])
    if np.isfinite(alarm).any():
        keys.append(key(f"alarm at {_last(alarm):.3g}", BAD, dash=_DASHED))
        (level,) = axes.plot(*records.broken(alarm), color=BAD, linewidth=1.0, zorder=2.8)
        level.set(marker="_", markersize=3)  # for what has no neighbours
        set_dash(level, _DASHED)
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
    keys = [
        key(f"supernet {_shown(_last(whole))}", _MAIN),
        key(f"discretised {_shown(_last(alone))}", _OTHER, limit=30),
    ]
    x, above = records.broken(whole)
    _, below = records.broken(alone)
    for where, color in ((above >= below, BAD), (above <= below, _OTHER)):
        area = axes.fill_between(x, above, below, where=where.tolist(), interpolate=True)
        area.set(facecolor=color, alpha=0.2, linewidth=0)
    _draw_line(axes, records, alone, keys[1])
    _draw_line(axes, records, whole, keys[0], above=0.1)
    return keys


def _draw_changes(axes: Axes, records: _Records) -> list[Line2D]:
    changes = records.column("changes").astype(np.int64)
    axes.bar(np.arange(1, len(changes) + 1), changes, width=0.8, color=_MAIN, linewidth=0, zorder=3)
    axes.set_ylim(0, 1.08 * max(int(changes.max()), 1))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    return [key(f"last {changes[-1]}, {changes.sum()} in all", _MAIN, limit=40)]


@dataclass(frozen=True, slots=True)
class _Panel:
    """draw: returns what the lines are, nothing where nothing was measured."""

    title: str
    caption: str
    draw: Callable[[Axes, _Records], list[Line2D]]


_PANELS = (
    _Panel("Skip share", "share of identities; near 1 is a collapse", _draw_skips),
    _Panel("Entropy", "1 is undecided; should end near 0", _draw_entropy),
    _Panel("Eigenvalue", "curvature in the alphas; growth is a warning", _draw_eigenvalue),
    _Panel("Gradient matching", "training with validation; below 0 they oppose", _draw_matching),
    _Panel("Accuracy", "orange is what discretising costs", _draw_accuracy),
    _Panel("Genotype changes", "decisions that changed; should settle at 0", _draw_changes),
)
