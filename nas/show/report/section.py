"""What the sections of a report are made of: pictures as inline SVG, what is told of their spots, numbers."""

from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ET  # nosec B405
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from nas.errors import printable
from nas.files.folder import MANIFEST, check_manifest, is_file

Values = Mapping[str, Any]
"""What a section's part of the template shows; `tips` holds what spots tell, by the name of all of them."""
Tip = Sequence[tuple[str, str]]
"""What is told of one spot of a picture: names and values, line by line."""
_MOST_BYTES = 400_000


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a picture's plot that tells of a trial.

    x, y: in the units of its axes; what lies outside is shown at their edge.
    trial: its number. label: what it is, in a few words.
    """

    x: float
    y: float
    trial: int
    label: str


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture in the page: an `<svg>`, or the address of an image.

    label: what it shows, for those who cannot see it. caption: stands below it. wide: takes the whole width.
    """

    label: str
    caption: str = ""
    svg: Markup = Markup()  # noqa: RUF009 - a frozen value
    image: str = ""
    wide: bool = False

    @classmethod
    def of(cls, figure: Figure, name: str, label: str, *, spots: Sequence[Spot] = ()) -> Self:
        """A figure over the whole width. name: of no other picture in the page."""
        return cls(label, label, svg=inline(figure, name=name, label=label, spots=spots), wide=True)


def stored(folder: Path, name: str, caption: str) -> list[Drawing]:
    """A picture that the run has left, as an image, in which nothing runs; none where it is not whole."""
    path = folder / name
    if not is_file(path) or path.stat().st_size > _MOST_BYTES:
        return []
    if is_file(folder / MANIFEST) and check_manifest(folder, [name]):
        return []
    data = base64.b64encode(path.read_bytes()).decode()
    return [Drawing(caption, caption, image=f"data:image/svg+xml;base64,{data}", wide=True)]


_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_DROPPED = (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")
_FONTS = "'DejaVu Sans', Verdana, sans-serif"
"""Verdana is as wide, where the first is not installed."""
_DECIMALS = re.compile(r"(\.\d\d)\d+")
_REFERENCE = re.compile(r"#([\w.-]+)")
_GEOMETRY = ("d", "x", "y", "transform", "points", "width", "height")
_MOST_FOCUSED = 200
"""Spots that the keyboard stops at."""


def inline(figure: Figure, *, name: str, label: str, spots: Sequence[Spot] = ()) -> Markup:
    """The figure as an `<svg>` element for a page.

    Styles become attributes, which a strict content security policy allows. name: what its ids begin with.
    label: what it shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "nas", "svg.fonttype": "none"}):
        # The page behind it may be dark.
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _LINK)
    root = ET.fromstring(buffer.getvalue())  # nosec B314
    _simplify(root, name)
    width, height = figure.get_size_inches() * 72
    root.attrib = {
        "viewBox": f"0 0 {width:.1f} {height:.1f}",
        "width": f"{width:.0f}",
        "height": f"{height:.0f}",
        "role": "group" if spots else "img",
        "aria-label": printable(label),
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
        "font-family": _FONTS,
    }
    if spots:
        root.append(_circles(figure, spots))
    return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=True))  # nosec B704


def _simplify(root: ET.Element, name: str) -> None:
    """Drops what nobody refers to, and gives ids and styles the form that a page with many pictures needs."""
    used = {found for node in root.iter() for v in node.attrib.values() for found in _REFERENCE.findall(v)}
    for node in root.iter():
        for child in [child for child in node if child.tag in _DROPPED]:
            node.remove(child)
        node.text = node.text if node.tag == f"{{{_SVG}}}text" else None
        node.tail = None
        attributes = dict(node.attrib)
        for rule in filter(None, attributes.pop("style", "").split(";")):
            key, _, value = rule.partition(":")
            attributes[key.strip()] = value.strip()
        attributes.pop("font-family", None)
        if (own := attributes.pop("id", None)) in used:
            attributes["id"] = f"{name}-{own}"
        for key, value in attributes.items():
            if key.endswith("href") or value.startswith("url("):
                attributes[key] = _REFERENCE.sub(rf"#{name}-\1", value)
            elif key in _GEOMETRY:
                attributes[key] = _DECIMALS.sub(r"\1", value.replace("\n", ""))
        node.attrib = attributes


def _circles(figure: Figure, spots: Sequence[Spot]) -> ET.Element:
    """Invisible circles over what they tell of."""
    group = ET.Element("g", {"class": "spots", "data-tips": "trials"})
    plot, scale = figure.axes[0], 72 / figure.dpi
    box, height = plot.get_window_extent(), float(figure.get_size_inches()[1]) * 72
    for place, spot in enumerate(spots):
        x, y = plot.transData.transform((spot.x, spot.y))
        x, y = min(max(x, box.x0), box.x1) * scale, height - min(max(y, box.y0), box.y1) * scale
        attributes = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "7", "data-tip": str(spot.trial)}
        if place < _MOST_FOCUSED:
            attributes |= {"tabindex": "0", "role": "img", "aria-label": printable(spot.label)}
        group.append(ET.Element("circle", attributes))
    return group


def duration(seconds: float) -> str:
    """Seconds in the units that suit them."""
    if not 60 <= seconds < 1e9:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


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


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else duration(value / 1000)


_UNITS: tuple[tuple[tuple[str, ...], Callable[[float], str]], ...] = (
    (("params", "macs"), quantity),
    (("_bytes",), lambda value: quantity(value, "B")),
    (("_acc", "_acc_low", "_acc_high"), percent),
    (("_delta", "_delta_low", "_delta_high"), lambda value: f"{signed(100 * value)} points"),
    (("seconds", "cost_s"), duration),
    (("_ms",), _milliseconds),
)
"""Ends of metrics' names, and how what they name is written."""


def metric(name: str, value: float) -> str:
    """A metric's value in its unit, as far as its name tells it."""
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
