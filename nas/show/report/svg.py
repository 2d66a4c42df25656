"""Drawings as parts of a page: plain attributes, own ids, text as text, spots to point at."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET  # nosec B405
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from nas.text import printable

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_DROPPED = (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")
_FONTS = "'DejaVu Sans', Verdana, sans-serif"
"""Verdana is as wide, where the first is not installed."""
_DECIMALS = re.compile(r"(\.\d\d)\d+")
_REFERENCE = re.compile(r"#([\w.-]+)")
_GEOMETRY = ("d", "x", "y", "transform", "points", "width", "height")
_MOST_FOCUSED = 200
"""Spots that the keyboard stops at."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a picture's plot that tells something.

    x, y: in the units of its axes; what lies outside is shown at their edge.
    entry: the number of what is told. label: the same in a few words.
    """

    x: float
    y: float
    entry: int
    label: str


def inline(figure: Figure, *, name: str, label: str, spots: Sequence[Spot] = (), tips: str = "") -> Markup:
    """The figure as an `<svg>` element for a page.

    Styles become attributes, which a strict content security policy allows. name: what its ids begin with.
    label: what it shows, for those who cannot see it. tips: the name of what the spots tell.
    """
    root = _parsed(figure)
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
        root.append(_spots(figure, spots, tips))
    return Markup(ET.tostring(root, encoding="unicode", short_empty_elements=True))  # nosec B704


def _parsed(figure: Figure) -> ET.Element:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "nas", "svg.fonttype": "none"}):
        # The page behind it may be dark.
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _LINK)
    return ET.fromstring(buffer.getvalue())  # nosec B314


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


def _spots(figure: Figure, spots: Sequence[Spot], tips: str) -> ET.Element:
    """Invisible circles over what they tell of."""
    group = ET.Element("g", {"class": "spots", "data-tips": tips})
    plot, scale = figure.axes[1], 72 / figure.dpi  # the first axes are the whole page's
    box, height = plot.get_window_extent(), float(figure.get_size_inches()[1]) * 72
    for place, spot in enumerate(spots):
        x, y = plot.transData.transform((spot.x, spot.y))
        x, y = min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)
        attributes = {
            "cx": f"{x * scale:.1f}",
            "cy": f"{height - y * scale:.1f}",
            "r": "7",
            "data-tip": str(spot.entry),
        }
        if place < _MOST_FOCUSED:
            attributes |= {"tabindex": "0", "role": "img", "aria-label": printable(spot.label)}
        group.append(ET.Element("circle", attributes))
    return group
