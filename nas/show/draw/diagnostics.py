"""How healthy a differentiable search was, record by record, so that a collapse is seen coming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from nas.show.draw.diagnostics_series import HealthRun, HealthSeries, Whole, checked, index_of
from nas.show.draw.style import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    Column,
    Heading,
    Key,
    Legend,
    clean,
    fit,
    page,
    plot_axes,
    set_dash,
    shade,
    text_size,
    tidy_ticks,
    tint,
    write,
)

PLOT = (3.1, 1.5)  # inches
BAD = SERIES[1]
_SIZE, _SWATCH, _GAP = 9.5, 0.25, 0.16
_MAIN, _OTHER = SERIES[0], SERIES[2]
# Kinds of cell; what is bad has a colour of its own.
_HUES = tuple(SERIES[rank] for rank in (0, 3, 4, 5, 2, 6))
_REST = SERIES[7]
_DASHED = (3.2, 1.6)


def write_head(sheet: Axes, panel: Panel, keys: Sequence[Key], left: float, top: float) -> None:
    """Title, caption and keys above a panel."""
    write(sheet, left, top + 0.75, panel.title, size=11, bold=True, ha="left")
    write(sheet, left, top + 0.54, panel.caption, size=_SIZE, color=MUTED, ha="left")
    x, y = left, top + 0.32
    for key in keys:
        (line,) = sheet.plot([x, x + 0.2], [y, y], color=key.color, linewidth=2.2, solid_capstyle="butt")
        set_dash(line, key.dash)
        write(sheet, x + _SWATCH, y, key.text, size=_SIZE, color=shade(key.color, 0.25), ha="left")
        x += _wide(key) + _GAP


def _wide(key: Key) -> float:
    return _SWATCH + text_size(key.text, _SIZE)[0]


def _broken(run: HealthRun, values: Column) -> tuple[Column, Column]:
    """Numbers of the records and values, with a gap wherever the search went back."""
    numbers = np.arange(1.0, run.length + 1)
    return np.insert(numbers, run.backs, run.backs + 0.5), np.insert(values, run.backs, np.nan)


def _draw_line(
    axes: Axes, run: HealthRun, values: Column, key: Key, *, width: float = 1.0, above: float = 0.0
) -> None:
    """A line with gaps; a value without neighbours is a dot, the last one a large one.

    width: relative to that of other lines.
    """
    x, y = _broken(run, values)
    known, order = np.isfinite(y), 3 + above
    (line,) = axes.plot(x, y, color=key.color, linewidth=width * run.line, zorder=order)
    set_dash(line, key.dash)
    alone = _alone(y)
    axes.plot(x[alone], y[alone], "o", color=key.color, markersize=3, zorder=order)
    (end,) = axes.plot(x[known][-1:], y[known][-1:], "o", color=key.color, markersize=6, zorder=order + 0.5)
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


def _draw_skips(axes: Axes, run: HealthRun) -> list[Key]:
    shares = {kind: v for kind, v in run.series.skip_shares.items() if np.isfinite(v).any()}
    axes.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1])
    if not shares:
        return []
    axes.axhspan(0.5, 1.05, color=tint(BAD, 0.9), linewidth=0, zorder=0.5)
    keys = _skip_keys(shares)
    others = [kind for kind in shares if kind not in keys]
    rest = Key("1 other" if len(others) == 1 else f"{len(others)} others", _REST)
    for kind in others:
        _draw_line(axes, run, shares[kind], rest, width=0.6)
    for rank, (kind, key) in enumerate(keys.items(), start=1):
        # Shares are often equal; a thin dashed line shows the thick one below it.
        _draw_line(axes, run, shares[kind], key, width=1.5 if rank == 1 else 1.0, above=0.1 * rank)
    return [*keys.values(), *([rest] if others else [])]


def _skip_keys(shares: Mapping[str, Column]) -> dict[str, Key]:
    """Keys for the kinds of cell that can be named in one line: all, or those with the largest shares."""
    for values in (True, False):
        keys = _kind_keys(shares, list(shares), values=values)
        if len(keys) <= len(_HUES) and _across(keys) <= PLOT[0]:
            return keys
    ranked = sorted(shares, key=lambda kind: -_last(shares[kind]))[: len(_HUES)]
    while ranked and _across(_kind_keys(shares, ranked, values=True)) > PLOT[0] - 1.1:
        ranked.pop()
    return _kind_keys(shares, ranked, values=True)


def _kind_keys(shares: Mapping[str, Column], kinds: Sequence[str], *, values: bool) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for kind, color in zip(kinds, _HUES, strict=False):
        name = fit(clean(kind, limit=16) or "?", _SIZE, 1.2) if kind else "outside cells"
        text = f"{name} {_shown(_last(shares[kind]))}" if values else name
        keys[kind] = Key(text, color, _DASHED if keys else ())
    return keys


def _across(keys: Mapping[str, Key]) -> float:
    """Inches that keys take side by side."""
    return sum(map(_wide, keys.values())) + _GAP * (len(keys) - 1)


def _draw_entropy(axes: Axes, run: HealthRun) -> list[Key]:
    values = run.series.entropy
    axes.set(ylim=(-0.03, 1.05), yticks=[0, 0.5, 1])
    return _draw_only(axes, run, values)


def _draw_only(axes: Axes, run: HealthRun, values: Column) -> list[Key]:
    """The one line of a panel."""
    if not np.isfinite(values).any():
        return []
    key = Key(f"last {_shown(_last(values))}", _MAIN)
    _draw_line(axes, run, values, key)
    return [key]


def _draw_matching(axes: Axes, run: HealthRun) -> list[Key]:
    values = run.series.matching
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    reach = next(reach for reach in (0.25, 0.5, 1.0) if largest <= reach)
    axes.set(ylim=(-1.05 * reach, 1.05 * reach), yticks=[-reach, 0, reach])
    keys = _draw_only(axes, run, values)
    if keys:
        axes.axhspan(-1.05 * reach, 0, color=tint(BAD, 0.9), linewidth=0, zorder=0.5)
    return keys


def _draw_eigenvalue(axes: Axes, run: HealthRun) -> list[Key]:
    values = run.series.eigenvalue
    if not np.isfinite(values).any():
        return []
    mean, alarm = run.series.mean, run.series.alarm
    _scale(axes, np.concatenate([values, alarm]))
    x, raw = _broken(run, values)
    dot = "." if run.is_short else ""
    axes.plot(x, raw, color=tint(_MAIN, 0.6), linewidth=0.55 * run.line, marker=dot, markersize=3, zorder=2.5)
    if not np.isfinite(mean).any():
        return [Key(f"last {_last(values):.3g}", _MAIN)]
    keys = [Key(f"mean {_last(mean):.3g}", _MAIN)]
    _draw_line(axes, run, mean, keys[0])
    if np.isfinite(alarm).any():
        keys.append(Key(f"alarm at {_last(alarm):.3g}", BAD, _DASHED))
        _draw_alarm(axes, run, mean, alarm)
    return keys


def _draw_alarm(axes: Axes, run: HealthRun, mean: Column, alarm: Column) -> None:
    """The level above which the mean is alarming, and dots where it is."""
    x, level = _broken(run, alarm)
    (line,) = axes.plot(x, level, color=BAD, linewidth=0.6 * run.line, zorder=2.8)
    set_dash(line, _DASHED)
    alone = _alone(level)
    if alone.any():
        axes.plot(x[alone], level[alone], "_", color=BAD, markersize=6, zorder=2.8)
    over = np.flatnonzero(mean > alarm)
    axes.plot(over + 1, mean[over], "o", color=BAD, markersize=2.5 * run.line, zorder=4.5, clip_on=False)


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


def _draw_accuracy(axes: Axes, run: HealthRun) -> list[Key]:
    whole = run.series.supernet_acc
    alone = whole - run.series.gap
    shown = [v for v in (*whole, *alone) if isfinite(v)]
    if not shown:
        return []
    top = next(top for top in (0.1, 0.2, 0.5, 1.0, 2.0) if max(shown) <= top)
    low = min(0.0, *shown)
    axes.set(ylim=(low - 0.03 * top, 1.05 * top), yticks=[0, top / 2, top])
    keys = [
        Key(f"supernet {_shown(_last(whole))}", _MAIN),
        Key(f"discretised {_shown(_last(alone))}", _OTHER),
    ]
    x, above = _broken(run, whole)
    _, below = _broken(run, alone)
    for where, color in ((above >= below, BAD), (above <= below, _OTHER)):
        axes.fill_between(
            x, above, below, where=where.tolist(), interpolate=True, color=color, alpha=0.2, linewidth=0
        )
    _draw_line(axes, run, alone, keys[1])
    _draw_line(axes, run, whole, keys[0], above=0.1)
    return keys


def _draw_changes(axes: Axes, run: HealthRun) -> list[Key]:
    changes = run.series.changes
    axes.bar(np.arange(1, run.length + 1), changes, width=0.8, color=_MAIN, linewidth=0, zorder=3)
    axes.set_ylim(0, 1.08 * max(int(changes.max()), 1))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    return [Key(f"last {changes[-1]}, {changes.sum()} in all", _MAIN)]


@dataclass(frozen=True, slots=True)
class Panel:
    """draw: returns what the lines are, nothing where nothing was measured."""

    title: str
    caption: str
    draw: Callable[[Axes, HealthRun], list[Key]]


PANELS = (
    Panel("Skip share", "share of identities; near 1 is a collapse", _draw_skips),
    Panel("Entropy", "1 is undecided; should end near 0", _draw_entropy),
    Panel("Eigenvalue", "curvature in the alphas; growth is a warning", _draw_eigenvalue),
    Panel("Gradient matching", "training with validation; below 0 they oppose", _draw_matching),
    Panel("Accuracy", "orange is what discretising costs", _draw_accuracy),
    Panel("Genotype changes", "decisions that changed; should settle at 0", _draw_changes),
)


_MARGIN, _GUTTER = 0.35, 0.6
_COLUMNS, _HEAD, _TICKS, _FOOT = 3, 0.9, 0.42, 0.5
_INNER, _PITCH = _COLUMNS * (_GUTTER + PLOT[0]), _HEAD + PLOT[1] + _TICKS
_TAG = 9.0
_ROW, _LINES, _NUMBER, _PLACE = 0.24, 8, 0.32, 1.85


@dataclass(frozen=True, slots=True)
class _Note:
    """One line under the panels. index: of the record at whose end it happened."""

    number: int
    index: int
    text: str
    back: bool


@dataclass(frozen=True, slots=True)
class _Tag:
    """The numbers of the notes at one place. x, width: of the text, in inches from the panel's left."""

    text: str
    x: float
    width: float
    back: bool


def draw_health(series: HealthSeries, *, title: str = "") -> Figure:
    """Draws six panels over the number of the record, and lists what happened.

    What is bad is orange. Numbered rules stand where something happened, solid ones where the search went
    back; the epochs that it undid lie on grey.
    """
    run = checked(series)
    notes, heading = _notes(run), Heading(title)
    width = max(_INNER, heading.width) + 2 * _MARGIN
    if not run.length:
        figure, sheet = page(width, heading.height + 0.5 + 2 * _MARGIN)
        heading.draw(sheet, _MARGIN, heading.height + 0.5 + _MARGIN)
        write(sheet, _MARGIN, _MARGIN + 0.2, "nothing was recorded", color=MUTED, size=12, ha="left")
        return figure
    legend = Legend(_keys(run, notes), _INNER)
    listing = _ROW * min(len(notes), _LINES + 1) + 0.12 * bool(notes)
    foot = _MARGIN + listing + legend.height + _FOOT
    rows = -(-len(PANELS) // _COLUMNS)
    height = foot + rows * _PITCH + heading.height + _MARGIN
    figure, sheet = page(width, height)
    heading.draw(sheet, _MARGIN, height - _MARGIN)
    legend.draw(sheet, _MARGIN, _MARGIN + listing + legend.height)
    _write_notes(sheet, run, notes, _MARGIN + listing - 0.12)
    tags = _tags(notes, run.length)
    middle = _MARGIN + _GUTTER + (_INNER - _GUTTER) / 2
    write(sheet, middle, foot, "record, one for every epoch in the order of training", size=11, color=MUTED)
    for place, panel in enumerate(PANELS):
        row, column = divmod(place, _COLUMNS)
        left = _MARGIN + _GUTTER + column * (_GUTTER + PLOT[0])
        bottom = foot + (rows - 1 - row) * _PITCH + _TICKS
        axes = plot_axes(figure, left, bottom, *PLOT)
        keys = panel.draw(axes, run)
        _frame(axes, run, notes, measured=bool(keys))
        write_head(sheet, panel, keys, left, bottom + PLOT[1])
        _write_tags(sheet, tags, left, bottom + PLOT[1])
    return figure


def _notes(run: HealthRun) -> list[_Note]:
    """Every event, and every return to an earlier epoch that no event tells of, in order."""
    events, epochs = run.series.events, run.series.epochs
    told, backs = {index for index, _ in events}, {int(first) - 1 for first in run.backs}
    silent = [(i, f"epoch {epochs[i]} was followed by epoch {epochs[i + 1]}") for i in backs - told]
    every = sorted([*events, *silent], key=index_of)
    return [_Note(n, index, text, index in backs) for n, (index, text) in enumerate(every, start=1)]


def _tags(notes: Sequence[_Note], count: int) -> list[_Tag]:
    """The numbers that find room beside each other, those of returns first."""
    places = [list(group) for _, group in groupby(notes, key=lambda note: note.index)]
    kept: list[_Tag] = []
    for place in sorted(places, key=lambda place: not place[0].back):
        first, last = place[0], place[-1]
        text = f"{first.number}" if first is last else f"{first.number}–{last.number}"
        half = text_size(text, _TAG, bold=True)[0] / 2
        x = min(max((first.index + 1) / count * PLOT[0], half), PLOT[0] - half)
        if all(abs(x - other.x) >= half + other.width / 2 + 0.05 for other in kept):
            kept.append(_Tag(text, x, 2 * half, first.back))
    return kept


def _write_tags(sheet: Axes, tags: Sequence[_Tag], left: float, top: float) -> None:
    for tag in tags:
        color = INK if tag.back else MUTED
        write(sheet, left + tag.x, top + 0.1, tag.text, size=_TAG, color=color, bold=True)


def _write_notes(sheet: Axes, run: HealthRun, notes: Sequence[_Note], top: float) -> None:
    x = _MARGIN + _NUMBER
    for line, note in enumerate(notes[:_LINES]):
        y = top - (line + 0.5) * _ROW
        color = INK if note.back else MUTED
        place = f"record {note.index + 1}, epoch {run.series.epochs[note.index]}"
        text = fit(clean(note.text, limit=200) or "?", 10, _INNER - _NUMBER - _PLACE)
        write(sheet, _MARGIN, y, str(note.number), size=10, color=color, bold=True, ha="left")
        write(sheet, x, y, fit(place, 10, _PLACE - 0.15), size=10, color=MUTED, ha="left")
        write(sheet, x + _PLACE, y, text, size=10, ha="left")
    if len(notes) > _LINES:
        y = top - (_LINES + 0.5) * _ROW
        write(sheet, x, y, f"and {len(notes) - _LINES} more", size=10, color=MUTED, ha="left")


def _keys(run: HealthRun, notes: Sequence[_Note]) -> list[Key]:
    """What the colours and rules mean that all panels share."""
    keys = [Key("a bad sign", tint(BAD, 0.65), mark="box")]
    if len(run.backs):
        keys += [Key("the search went back", INK), Key("undone epochs", tint(MUTED, 0.8), mark="box")]
    if any(not note.back for note in notes):
        keys.append(Key("other event", MUTED, (1.0, 1.4)))
    return keys


def _frame(axes: Axes, run: HealthRun, notes: Sequence[_Note], *, measured: bool) -> None:
    """The records along the bottom, what was undone, and where something happened."""
    if not measured:
        axes.set_yticks([])
        middle = ((run.length + 1) / 2, sum(axes.get_ylim()) / 2)
        note = write(axes, *middle, text="not measured", size=11, color=MUTED)
        note.set_bbox({"facecolor": PAPER, "edgecolor": "none", "pad": 2.0})
    axes.set_xlim(0.5, run.length + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    for start, end in _undone(run.series.epochs):
        axes.axvspan(start + 0.5, end + 0.5, color=MUTED, alpha=0.2, linewidth=0, zorder=0.6)
    for back, color, dash in ((True, INK, "solid"), (False, MUTED, "dotted")):
        places = sorted({note.index + 1.5 for note in notes if note.back == back})
        rules = axes.vlines(places, 0, 1, color=color, linewidth=0.9, linestyle=dash, zorder=2)
        rules.set_transform(axes.get_xaxis_transform())


def _undone(epochs: Whole) -> Whole:
    """[K, 2] the first record, and the one after the last, of each stretch that was gone back on."""
    least = np.minimum.accumulate(epochs[::-1])[::-1]
    undone = np.append(epochs[:-1] >= least[1:], False)
    return np.flatnonzero(np.diff(undone, prepend=False)).reshape(-1, 2)
