"""What the sections of a report are made of: pictures with places that tell of trials, numbers in words."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import matplotlib as mpl
from matplotlib.figure import Figure

from nas.files.folder import MANIFEST, check_manifest, is_file
from nas.show.draw.style import duration, svg_of

Values = Mapping[str, Any]
"""What a section's part of the template shows; `tips` holds what spots tell, by the name of all of them."""
Tip = Sequence[tuple[str, str]]
"""What is told of one spot of a picture: names and values, line by line."""
_MOST_BYTES = 400_000


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a picture that tells of a trial.

    x, y: in the units of the plot's axes; what lies outside is shown at their edge.
    trial: its number. label: what it is, in a few words.
    """

    x: float
    y: float
    trial: int
    label: str


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture in the page, as an image in which nothing can run.

    label: what it shows, for those who cannot see it. image: its address, which holds all of it.
    caption: stands below it. wide: takes the whole width. size: in points, where it is known.
    spots: as in `Spot`, but in points from the upper left corner.
    """

    label: str
    image: str
    caption: str = ""
    wide: bool = True
    size: tuple[float, float] = (0.0, 0.0)
    spots: Sequence[Spot] = ()

    @classmethod
    def of(
        cls, figure: Figure, label: str, *, caption: str | None = None, spots: Sequence[Spot] = ()
    ) -> Self:
        """A figure, whose first axes hold the spots; wide, with its label as caption, unless given one."""
        with mpl.rc_context({"svg.hashsalt": "nas", "svg.fonttype": "none"}):
            image = _address(svg_of(figure, paper="none").encode())
        width, height = figure.get_size_inches() * 72
        plot, scale = figure.axes[0], 72 / figure.dpi
        box, found = plot.get_window_extent(), []
        for spot in spots:
            x, y = plot.transData.transform((spot.x, spot.y))
            x, y = min(max(x, box.x0), box.x1) * scale, height - min(max(y, box.y0), box.y1) * scale
            found.append(Spot(round(x, 1), round(y, 1), spot.trial, spot.label))
        shown = label if caption is None else caption
        return cls(label, image, shown, caption is None, (round(width), round(height)), found)


def stored(folder: Path, name: str, label: str) -> list[Drawing]:
    """A picture that the run has left; none where it is not whole."""
    path = folder / name
    if not is_file(path) or path.stat().st_size > _MOST_BYTES:
        return []
    if is_file(folder / MANIFEST) and check_manifest(folder, [name]):
        return []
    return [Drawing(label, _address(path.read_bytes()), label)]


def _address(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def percent(share: float) -> str:
    """A share in [0, 1], e.g. an accuracy."""
    return f"{100 * share:.2f} %"


def quantity(number: float, unit: str = "") -> str:
    """A number in thousands, millions or billions of its unit, where it has so many."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.4g} {unit}".rstrip()


def signed(number: float, digits: int = 2) -> str:
    """A difference; its sign always shows."""
    return "–" if not math.isfinite(number) else f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


_UNITS: tuple[tuple[tuple[str, ...], Callable[[float], str]], ...] = (
    (("params", "macs"), quantity),
    (("_bytes",), lambda value: quantity(value, "B")),
    (("_acc", "_acc_low", "_acc_high"), percent),
    (("_delta", "_delta_low", "_delta_high"), lambda value: f"{signed(100 * value)} points"),
    (("seconds", "cost_s"), duration),
    (("_ms",), lambda value: f"{value:.3g} ms" if value < 1000 else duration(value / 1000)),
)
"""Ends of metrics' names, and how what they name is written."""


def metric(name: str, value: float, *, is_share: bool = True) -> str:
    """A metric's value in its unit, as far as its name tells it.

    is_share: whether differences are those of shares, told in points of a hundred.
    """
    if not is_share and name.endswith(("_delta", "_delta_low", "_delta_high")):
        return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")
    write = next((write for ends, write in _UNITS if name.endswith(ends)), "{:.4g}".format)
    return write(value)


NUMBERS: Mapping[str, Callable[..., str]] = {
    "duration": duration,
    "metric": metric,
    "percent": percent,
    "quantity": quantity,
    "signed": signed,
}
"""How numbers are written, by the names that the template calls these functions by."""
