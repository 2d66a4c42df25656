"""How healthy a differentiable search was, record by record, so that a collapse is seen coming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nas.show.draw.diagnostics_panels import BAD, PANELS, PLOT, write_head
from nas.show.draw.diagnostics_series import HealthRun, HealthSeries, Whole, checked, index_of
from nas.show.draw.style import (
    INK,
    MUTED,
    PAPER,
    Heading,
    Key,
    Legend,
    clean,
    fit,
    page,
    plot_axes,
    text_size,
    tint,
    write,
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
