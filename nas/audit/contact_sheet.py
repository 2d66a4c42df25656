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
from nas.show.draw.style import HAIR, INK, MUTED, clean, finish, fit, page, styled, text_size, write

_THUMB, _GAP, _COLUMNS, _ROWS = 0.86, 0.16, 10, 3
_SIZE, _LINE, _HEAD, _AFTER = 7.5, 0.145, 0.42, 0.22
_ROW = _THUMB + 2 * _LINE + 0.16
_BAD, _GOOD = "#A23B00", "#00664F"
_TITLES: Mapping[str, str] = {
    "leak": "Copies across splits: the left one may stay",
    "duplicate": "Copies within a split: the left one may stay",
    "mislabel": "Likely mislabels: given label, suggested label",
    "outlier": "Outliers",
}


@dataclass(frozen=True, slots=True)
class _Thumbnail:
    """An image, its label, where it is, and the colours of these two lines."""

    image: Tensor
    label: str
    place: str
    colors: tuple[str, str] = (INK, MUTED)


@dataclass(frozen=True, slots=True)
class _Section:
    """Suspects of one kind, each as one thumbnail or, a copy, beside what it is a copy of."""

    title: str
    suspects: Sequence[Sequence[_Thumbnail]]

    @property
    def per_row(self) -> int:
        """Suspects in a row."""
        return _COLUMNS // len(self.suspects[0])

    @property
    def height(self) -> float:
        """Inches of title and rows."""
        return _HEAD + min(_ROWS, -(-len(self.suspects) // self.per_row)) * _ROW + _AFTER


@styled
def draw_sheet(task: Task, suspects: Sequence[Suspect], *, title: str = "") -> Figure | None:
    """Draws at most three rows of suspects of each kind, the most suspect first; None where there are none.

    task: whose images they are. suspects: those of no image (files that could not be read) are not shown.
    """
    images = dict(_by_origin(task))
    sections = [
        _Section(words, found)
        for kind, words in _TITLES.items()
        if (found := [_thumbnails(suspect, images) for suspect in suspects if suspect.kind == kind])
    ]
    if not sections:
        return None
    width = _COLUMNS * _THUMB + (_COLUMNS - 1) * _GAP
    top = sum(section.height for section in sections) - _AFTER
    figure, sheet = page(width, top)
    for section in sections:
        _draw_section(sheet, section, top)
        top -= section.height
    return finish(figure, title=title)


def _by_origin(task: Task) -> Iterator[tuple[int, _Thumbnail]]:
    for name, split in task.splits.items():
        origins = torch.arange(len(split)) if split.origin is None else split.origin
        for image, label, origin in zip(split.x, split.y.tolist(), origins.tolist(), strict=True):
            yield origin, _Thumbnail(image, task.classes[label], f"{name} {origin}")


def _thumbnails(suspect: Suspect, images: Mapping[int, _Thumbnail]) -> list[_Thumbnail]:
    own = images[suspect.origin]
    if suspect.kind in ("leak", "duplicate"):
        kept = images[suspect.of]
        colors = (_BAD if kept.label != own.label else INK, MUTED)
        return [_Thumbnail(one.image, one.label, one.place, colors) for one in (kept, own)]
    if suspect.suggested:
        return [_Thumbnail(own.image, suspect.given, suspect.suggested, (_BAD, _GOOD))]
    return [own]


def _draw_section(sheet: Axes, section: _Section, top: float) -> None:
    write(sheet, 0, top - 0.14, section.title, size=11.5, bold=True, ha="left")
    shown = section.suspects[: _ROWS * section.per_row]
    all_of_them = f"{len(section.suspects):,}"
    count = all_of_them if len(shown) == len(section.suspects) else f"{len(shown)} of {all_of_them}"
    right = text_size(section.title, 11.5, bold=True)[0] + 0.2
    write(sheet, right, top - 0.14, count, size=10, color=MUTED, ha="left")
    for number, thumbnails in enumerate(shown):
        row, column = divmod(number, section.per_row)
        left = column * len(thumbnails) * (_THUMB + _GAP)
        low = top - _HEAD - row * _ROW - _THUMB
        for place, thumbnail in enumerate(thumbnails):
            _draw(sheet, thumbnail, left + place * (_THUMB + 0.04), low)
        if len(thumbnails) > 1:
            sheet.plot([left, left + 2 * _THUMB + 0.04], [low - 0.04, low - 0.04], color=HAIR, linewidth=1.2)


def _draw(sheet: Axes, thumbnail: _Thumbnail, x: float, y: float) -> None:
    """An image, fitted into its square, with two lines below."""
    pixels = _pixels(thumbnail.image)
    height, width = pixels.shape[:2]
    tall, broad = (_THUMB * side / max(height, width) for side in (height, width))
    left, low = x + (_THUMB - broad) / 2, y + (_THUMB - tall) / 2
    box = (left, left + broad, low, low + tall)
    sheet.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=box, aspect="auto", interpolation="nearest")
    corners = ([box[0], box[1], box[1], box[0], box[0]], [box[2], box[2], box[3], box[3], box[2]])
    sheet.plot(*corners, color=HAIR, linewidth=0.8)
    lines = zip((thumbnail.label, thumbnail.place), thumbnail.colors, strict=True)
    for line, (text, color) in enumerate(lines):
        shown = fit(clean(text), _SIZE, _THUMB + 0.04)
        write(sheet, x + _THUMB / 2, y - 0.12 - line * _LINE, shown, size=_SIZE, color=color)


def _pixels(image: Tensor) -> Array:
    """Pixels [H, W] or [H, W, 3] in [0, 1]; floats are stretched over their range."""
    pixels = image.float().cpu()
    low, high = (0.0, 255.0) if image.dtype == torch.uint8 else (float(pixels.min()), float(pixels.max()))
    pixels = (pixels - low) / max(high - low, 1e-9)
    array: Array = (pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels.mean(0)).numpy()
    return array
