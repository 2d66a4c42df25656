"""The contact sheet: suspects as thumbnails, grouped by kind, with what is wrong with each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nas.data.exclusions import Suspect
from nas.data.task import Task
from nas.show.draw.style import INK, MUTED, clean, fit, styled

_COLUMNS, _ROWS = 10, 3
_BAD, _GOOD = "#A23B00", "#00664F"
_TITLES: Mapping[str, str] = {
    "leak": "Copies across splits: the left one may stay",
    "duplicate": "Copies within a split: the left one may stay",
    "mislabel": "Likely mislabels: given label, suggested label",
    "outlier": "Outliers",
}


class _Thumbnail(NamedTuple):
    """An image, its label, a line below it, and the colours of both."""

    image: Tensor
    label: str
    line: str
    colors: tuple[str, str] = (INK, MUTED)


@styled
def draw_sheet(task: Task, suspects: Sequence[Suspect], *, title: str = "") -> Figure | None:
    """Draws at most three rows of suspects of each kind, the most suspect first; None where there are none.

    task: whose images they are. suspects: those of no image (files that could not be read) are not shown.
    """
    images = dict(_by_origin(task))
    rows: list[tuple[str, list[_Thumbnail]]] = []
    for kind, words in _TITLES.items():
        found = [_thumbnails(suspect, images) for suspect in suspects if suspect.kind == kind]
        per_row = _COLUMNS // len(found[0]) if found else 1
        for start in range(0, min(len(found), _ROWS * per_row), per_row):
            shown = [one for several in found[start : start + per_row] for one in several]
            rows.append(("" if start else f"{words} ({len(found):,})", shown))
    if not rows:
        return None
    height = 0.6 + 1.5 * len(rows)
    figure = Figure(figsize=(_COLUMNS, height))
    figure.suptitle(clean(title, limit=80), x=0.01, ha="left", va="top", y=1 - 0.1 / height)
    grid = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    figure.subplots_adjust(0.01, 0.5 / height, 0.99, 1 - 0.8 / height, wspace=0.15, hspace=0.75)
    for axes, (heading, thumbnails) in zip(grid, rows, strict=True):
        axes[0].set_title(heading)
        for place, thumbnail in zip_longest(axes, thumbnails):
            place.set_axis_off()
            if thumbnail is not None:
                _draw(place, thumbnail)
    return figure


def _by_origin(task: Task) -> Iterator[tuple[int, _Thumbnail]]:
    for name, split in task.splits.items():
        origins = torch.arange(len(split)) if split.origin is None else split.origin
        for image, label, origin in zip(split.x, split.y.tolist(), origins.tolist(), strict=True):
            yield origin, _Thumbnail(image, task.classes[label], f"{name} {origin}")


def _thumbnails(suspect: Suspect, images: Mapping[int, _Thumbnail]) -> list[_Thumbnail]:
    """The suspect; a copy is beside what it is a copy of."""
    own = images[suspect.origin]
    if suspect.kind in ("leak", "duplicate"):
        kept = images[suspect.of]
        colors = (INK if kept.label == own.label else _BAD, MUTED)
        return [kept._replace(colors=colors), own._replace(colors=colors)]
    if suspect.suggested:
        return [own._replace(line=suspect.suggested, colors=(_BAD, _GOOD))]
    return [own]


def _draw(axes: Axes, thumbnail: _Thumbnail) -> None:
    """An image with two lines below; floats are stretched over their range."""
    pixels = thumbnail.image.float().cpu()
    low, high = (0.0, 255.0) if thumbnail.image.dtype == torch.uint8 else map(float, pixels.aminmax())
    pixels = (pixels - low) / max(high - low, 1e-9)
    shown = pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels.mean(0)
    axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    lines = zip((thumbnail.label, thumbnail.line), thumbnail.colors, strict=True)
    for number, (text, color) in enumerate(lines):
        label = fit(clean(text), 7.5, 0.95)
        place = axes.text(0.5, -0.04 - 0.16 * number, label, fontsize=7.5, color=color, ha="center", va="top")
        place.set_transform(axes.transAxes)
