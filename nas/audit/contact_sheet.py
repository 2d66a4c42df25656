"""The contact sheet: suspects as thumbnails, grouped by kind, with what is wrong with each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nas.data.arrays import Array
from nas.data.exclusions import Suspect
from nas.data.task import Task
from nas.show.draw.style import HAIR, INK, MUTED, Heading, clean, fit, page, text_size, write

_THUMB, _GAP, _COLUMNS, _MARGIN = 0.86, 0.16, 10, 0.35
_SIZE, _LINE, _HEAD, _AFTER = 7.5, 0.145, 0.42, 0.22
_ROWS = 3
_BAD, _GOOD = "#A23B00", "#00664F"
_TITLES: Mapping[str, str] = {
    "leak": "Copies across splits: the left one may stay",
    "duplicate": "Copies within a split: the left one may stay",
    "mislabel": "Likely mislabels: given label, suggested label",
    "outlier": "Outliers",
}


@dataclass(frozen=True, slots=True)
class _Section:
    """Suspects of one kind; copies are shown beside what they are copies of."""

    kind: str
    suspects: Sequence[Suspect]

    @property
    def wide(self) -> int:
        """Thumbnails that a suspect takes."""
        return 2 if self.kind in ("leak", "duplicate") else 1

    @property
    def shown(self) -> Sequence[Suspect]:
        """As many as there is room for, the most suspect first."""
        return self.suspects[: _ROWS * _COLUMNS // self.wide]

    @property
    def rows(self) -> int:
        """Rows of thumbnails."""
        return -(-len(self.shown) * self.wide // _COLUMNS)

    @property
    def height(self) -> float:
        """Inches of title and rows."""
        return _HEAD + self.rows * _ROW + _AFTER


_ROW = _THUMB + 2 * _LINE + 0.16


def draw_sheet(task: Task, suspects: Sequence[Suspect], *, title: str = "") -> Figure | None:
    """Draws at most three rows of suspects of each kind, the most suspect first; None where there are none.

    task: whose images they are. suspects: those of no image (files that could not be read) are not shown.
    """
    sections = [
        _Section(kind, found)
        for kind in _TITLES
        if (found := [suspect for suspect in suspects if suspect.kind == kind])
    ]
    if not sections:
        return None
    places = _places(task)
    heading = Heading(title)
    width = 2 * _MARGIN + _COLUMNS * _THUMB + (_COLUMNS - 1) * _GAP
    height = 2 * _MARGIN + heading.height + sum(section.height for section in sections) - _AFTER
    figure, sheet = page(width, height)
    heading.draw(sheet, _MARGIN, height - _MARGIN)
    top = height - _MARGIN - heading.height
    for section in sections:
        _draw_section(sheet, section, top, places)
        top -= section.height
    sheet.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    return figure


@dataclass(frozen=True, slots=True)
class _Place:
    """An image and where it is."""

    image: Tensor
    label: str
    name: str


def _places(task: Task) -> dict[int, _Place]:
    """Every image by its origin."""
    return dict(_by_origin(task))


def _by_origin(task: Task) -> Iterator[tuple[int, _Place]]:
    for name, split in (("train", task.train), ("val", task.val), ("test", task.test)):
        origins = torch.arange(len(split)) if split.origin is None else split.origin
        for image, label, origin in zip(split.x, split.y.tolist(), origins.tolist(), strict=True):
            yield origin, _Place(image, task.classes[label], f"{name} {origin}")


def _draw_section(sheet: Axes, section: _Section, top: float, places: Mapping[int, _Place]) -> None:
    title = _TITLES[section.kind]
    write(sheet, _MARGIN, top - 0.14, title, size=11.5, bold=True, ha="left")
    some = f"{len(section.shown)} of {len(section.suspects):,}"
    write(
        sheet,
        _MARGIN + text_size(title, 11.5, bold=True)[0] + 0.2,
        top - 0.14,
        some if len(section.shown) < len(section.suspects) else f"{len(section.suspects)}",
        size=10,
        color=MUTED,
        ha="left",
    )
    for number, suspect in enumerate(section.shown):
        row, column = divmod(number * section.wide, _COLUMNS)
        x = _MARGIN + column * (_THUMB + _GAP)
        y = top - _HEAD - row * _ROW - _THUMB
        if section.wide == 2:
            _draw_pair(sheet, suspect, x, y, places)
        else:
            _draw_single(sheet, suspect, x, y, places)


def _draw_pair(sheet: Axes, suspect: Suspect, x: float, y: float, places: Mapping[int, _Place]) -> None:
    kept, copy = places[suspect.of], places[suspect.origin]
    differ = kept.label != copy.label
    right = x + _THUMB + 0.04
    sheet.plot([x, right + _THUMB], [y - 0.04, y - 0.04], color=HAIR, linewidth=1.2)
    for place, left in ((kept, x), (copy, right)):
        _thumbnail(sheet, place.image, left, y)
        _caption(sheet, left, y, ((place.label, _BAD if differ else INK), (place.name, MUTED)))


def _draw_single(sheet: Axes, suspect: Suspect, x: float, y: float, places: Mapping[int, _Place]) -> None:
    place = places[suspect.origin]
    _thumbnail(sheet, place.image, x, y)
    if suspect.suggested:
        _caption(sheet, x, y, ((suspect.given, _BAD), (suspect.suggested, _GOOD)))
    else:
        _caption(sheet, x, y, ((suspect.given, INK), (place.name, MUTED)))


def _caption(sheet: Axes, x: float, y: float, lines: Sequence[tuple[str, str]]) -> None:
    """Lines below a thumbnail, each with its colour."""
    for line, (text, shade) in enumerate(lines):
        shown = fit(clean(text), _SIZE, _THUMB + 0.04)
        write(sheet, x + _THUMB / 2, y - 0.12 - line * _LINE, shown, size=_SIZE, color=shade)


def _thumbnail(sheet: Axes, image: Tensor, x: float, y: float) -> None:
    """An image, fitted into its square."""
    pixels = _shown(image)
    height, width = pixels.shape[:2]
    tall, broad = (_THUMB * side / max(height, width) for side in (height, width))
    left, low = x + (_THUMB - broad) / 2, y + (_THUMB - tall) / 2
    box = (left, left + broad, low, low + tall)
    sheet.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=box, aspect="auto", interpolation="nearest")
    corners = ([box[0], box[1], box[1], box[0], box[0]], [box[2], box[2], box[3], box[3], box[2]])
    sheet.plot(*corners, color=HAIR, linewidth=0.8)


def _shown(image: Tensor) -> Array:
    """Pixels [H, W] or [H, W, 3] in [0, 1]; floats are stretched over their range."""
    pixels = image.float().cpu()
    if image.dtype == torch.uint8:
        pixels = pixels / 255
    else:
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / (high - low).clamp_min(1e-9)
    array: Array = (pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels.mean(0)).numpy()
    return array
