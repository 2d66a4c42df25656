"""What every picture shares: style sheet, colours, plain text, the page with heading and legend, files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.textpath import TextToPath
from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.files.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

Column = NDArray[np.float64]

FONT = "DejaVu Sans"
INK, MUTED, HAIR, PANEL, PAPER = "#1B2733", "#667380", "#D5DBE1", "#F6F8FA", "#FFFFFF"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#A0307F", "#E0A500", "#56B4E9", "#1B2733", "#98A2AB")
"""Colours in order of use, at least 16 CIELAB units apart for the three kinds of colour blindness."""
MARGIN = 0.35
"""Inches around all that is on a page."""
TEXT_LIMIT = 24
_DPI = 160
_MANY = 1500
"""Dots that are drawn as one picture, which is a smaller file."""

STYLE: dict[RcKeyType, Any] = {
    "font.family": FONT,
    "text.color": INK,
    "text.parse_math": False,  # names may hold dollar signs
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": HAIR,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.labelpad": 8,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "grid.color": HAIR,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "xtick.labelsize": 9.5,
    "xtick.major.size": 0,
    "xtick.major.pad": 7,
    "ytick.color": MUTED,
    "ytick.labelsize": 9.5,
    "ytick.major.size": 0,
    "ytick.major.pad": 5,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "svg.hashsalt": "nas",  # the same picture is the same bytes
    "svg.fonttype": "path",  # and looks the same on a machine without the font
}
styled = mpl.rc_context(STYLE)
"""Decorates what makes a figure, so that all in it has the style."""


@dataclass(frozen=True, slots=True)
class Look:
    """How one family of operations is drawn.

    label: its name in a legend.
    color: hexadecimal; the hues stay apart for the common kinds of colour blindness.
    dash: on and off lengths in line widths; empty means solid.
    """

    label: str
    color: str
    dash: tuple[float, ...] = ()


LOOKS: Mapping[str, Look] = {
    "conv": Look("convolution", "#0072B2"),
    "sep": Look("separable conv", "#D55E00"),
    "dil": Look("dilated conv", "#A0307F"),
    "pool": Look("pooling", "#00886A"),
    "skip": Look("skip", "#56616C", (3.2, 1.8)),
    "none": Look("none", "#A9B2BA", (1.0, 1.8)),
    "concat": Look("concat", "#B3BCC5"),
    "other": Look("other", "#B07C00"),
}
_PATTERNS: Sequence[tuple[str, str]] = (
    ("none", r"^(none|zero|zeroize)$"),
    ("concat", r"^concat"),
    ("skip", r"skip|identity|shortcut|^id$"),
    ("pool", r"pool"),
    ("dil", r"dil|atrous"),
    ("sep", r"sep|depthwise|^dw|mbconv"),
    ("conv", r"conv"),
)
_OTHERS = ("#B07C00", "#4477AA", "#882255", "#117733", "#AA4466", "#44AA99", "#332288", "#999933")
_DASHES = ((), (5.0, 1.6), (2.2, 1.4), (1.0, 1.4))


def op_kind(name: str) -> str:
    """The family of an operation, a key of `LOOKS`, read from its name: `"sep_conv_3x3"` is `"sep"`."""
    lowered = name.strip().lower()
    return next((kind for kind, pattern in _PATTERNS if re.search(pattern, lowered)), "other")


def palette(names: Iterable[str]) -> dict[str, Look]:
    """One look per name: the hue of its family, lighter and dashed for the family's later members."""
    looks: dict[str, Look] = {}
    members: dict[str, int] = {}
    for name in dict.fromkeys(names):
        kind = op_kind(name)
        rank = members[kind] = members.get(kind, -1) + 1
        if kind == "other":
            turn, rank = divmod(rank, len(_OTHERS))
            looks[name] = Look(name, _OTHERS[rank], _DASHES[min(turn, 3)])
        else:
            family = LOOKS[kind]
            dash = family.dash or _DASHES[min(rank, 3)]
            looks[name] = Look(name, tint(family.color, min(0.3 * rank, 0.6)), dash)
    return looks


def tint(color: str, amount: float) -> str:
    """`color` mixed with white; `amount` in [0, 1] is the share of white."""
    return to_hex(tuple(np.asarray(to_rgb(color)) * (1 - amount) + amount))


def shade(color: str, amount: float) -> str:
    """`color` mixed with black; `amount` in [0, 1] is the share of black."""
    return to_hex(tuple(np.asarray(to_rgb(color)) * (1 - amount)))


def set_dash(artist: Line2D | Patch, dash: tuple[float, ...]) -> None:
    """Gives a line or a patch its dash pattern; an empty one leaves it solid."""
    if dash:
        artist.set_linestyle((0, dash))


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def clean(text: str, *, limit: int = TEXT_LIMIT) -> str:
    """`text` on one line, at most `limit` characters, in glyphs that the font has.

    Control characters and line breaks become spaces and missing glyphs a box, so that no name can warn,
    break the SVG or push its neighbours away.
    """
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    shown = "".join(c if ord(c) in _glyphs() else "□" for c in flat)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


_SUBSCRIPTS = str.maketrans("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ")


def node_text(label: str) -> str:
    """`clean(label)`, with `c_{k-2}` written with real subscripts."""
    match = re.fullmatch(r"(\w)_\{([0-9+\-=()aehijklmnoprstuvx]{1,6})\}", label)
    return match[1] + match[2].translate(_SUBSCRIPTS) if match else clean(label)


def duration(seconds: float) -> str:
    """Seconds in the units that suit them."""
    if not 60 <= seconds < 1e9:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


@lru_cache(maxsize=4096)
def text_size(text: str, size: float, *, bold: bool = False) -> tuple[float, float]:
    """Width and height in inches of one line of text at `size` points, without hinting."""
    font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
    measure = TextToPath().get_text_width_height_descent
    return measure(text, font, ismath=False)[0] / 72, measure("lp", font, ismath=False)[1] / 72


def fit(text: str, size: float, width: float, *, bold: bool = False) -> str:
    """`text` shortened with an ellipsis until it is at most `width` inches wide."""
    shown = text
    while len(shown) > 1 and text_size(shown, size, bold=bold)[0] > width:
        shown = shown[:-2].rstrip() + "…"
    return shown


def write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 10,
    color: str = INK,
    bold: bool = False,
    ha: Literal["left", "center", "right"] = "center",
) -> Text:
    """Puts plain text on `axes`, its line centred at height `y`; nothing in it is read as mathematics."""
    artist = axes.text(x, y, text, fontsize=size, color=color, fontfamily=FONT, zorder=10, parse_math=False)
    artist.set(ha=ha, va="center_baseline", fontweight="bold" if bold else "normal")
    return artist


def key(
    label: str, color: str, *, dash: tuple[float, ...] = (), marker: str = "", limit: int = TEXT_LIMIT
) -> Line2D:
    """An entry of a legend: a line, or one marker such as `"o"`, `"x"` and `"s"`."""
    line = Line2D([], [], color=color, linewidth=2.4, label=clean(label, limit=limit) or "?")
    set_dash(line, dash)
    if marker:
        line.set(linestyle="none", marker=marker, markersize=10 if marker == "s" else 7)
        line.set(markeredgewidth=1.6 if marker == "x" else 1.0)
    return line


def plot(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure that is one plot of so many inches; `finish` makes room for all that stands around it."""
    figure = Figure(figsize=(width, height))
    return figure, figure.add_axes((0, 0, 1, 1))


def page(width: float, height: float) -> tuple[Figure, Axes]:
    """The same with blank axes in inches from the lower left corner, and room for half a line around them."""
    edge = 0.02
    figure, sheet = plot(width + 2 * edge, height + 2 * edge)
    sheet.set_axis_off()
    sheet.set(xlim=(-edge, width + edge), ylim=(-edge, height + edge))
    return figure, sheet


_HEADING = ((16.0, "bold", INK, 80, 0.42), (11.0, "normal", MUTED, 110, 0.3))
"""Of title and subtitle: points, weight, colour, the most characters, inches of the line."""


def finish(figure: Figure, *, title: str = "", subtitle: str = "", keys: Sequence[Line2D] = ()) -> Figure:
    """Grows the page around all that is drawn, and for a heading above and a legend of `keys` below it."""
    size, body = figure.get_size_inches(), figure.get_tightbbox()
    width, head, heading = body.width, 0.0, []
    for text, (points, weight, color, limit, room) in zip((title, subtitle), _HEADING, strict=True):
        if line := clean(text, limit=limit):
            shown = figure.text(MARGIN, head, line, va="top", transform=figure.dpi_scale_trans)
            shown.set(fontsize=points, fontweight=weight, color=color)
            heading.append(shown)
            width = max(width, shown.get_window_extent().width / figure.dpi)
            head += room
    foot = _legend(figure, keys, width)
    grown = np.asarray([width, head + body.height + foot]) + 2 * MARGIN
    figure.set_size_inches(*grown)
    for shown in heading:
        shown.set_y(grown[1] - MARGIN - shown.get_position()[1])
    for axes in figure.axes:
        place = axes.get_position()
        corner = place.min * size - np.asarray(body.min) + (MARGIN, MARGIN + foot)
        axes.set_position(tuple(np.round([*(corner / grown), *(place.size * size / grown)], 5)))
    return figure


def nothing_recorded(title: str) -> Figure:
    """A page that says so."""
    figure, sheet = page(4.5, 0.5)
    write(sheet, 0, 0.25, "nothing was recorded", color=MUTED, size=12, ha="left")
    return finish(figure, title=title)


def _legend(figure: Figure, keys: Sequence[Line2D], width: float) -> float:
    """Draws a legend at the foot in as many columns as `width` has room for; returns the inches it takes."""
    lines = any(entry.get_linestyle() != "None" for entry in keys)
    for columns in range(min(len(keys), 12), 0, -1):
        legend = figure.legend(
            handles=keys,
            loc="lower left",
            ncols=columns,
            handlelength=2.0 if lines else 0.8,
            bbox_to_anchor=(MARGIN, MARGIN),
            bbox_transform=figure.dpi_scale_trans,
        )
        box = legend.get_window_extent()
        if columns == 1 or box.width <= width * figure.dpi:
            return float(box.height / figure.dpi) + 0.2
        legend.remove()
    return 0.0


_GEOMETRY = re.compile(r' (?:d|x|y)="[^"]*"')
_DECIMALS = re.compile(r"(\.\d\d)\d+")


def svg_of(figure: Figure, *, paper: str = "auto") -> str:
    """The figure as SVG; a hundredth of a point is enough for the eye and halves the file.

    paper: the colour behind it, `"none"` for a page that may be dark.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor=paper)
    return _GEOMETRY.sub(lambda found: _DECIMALS.sub(r"\1", found[0]), buffer.getvalue())


@styled
def save(figure: Figure, *paths: Path) -> None:
    """Writes `figure` to every path, each `.svg` or `.png`; the same figure gives the same bytes.

    A reader sees a whole file or the previous one, never a part.
    """
    for path in paths:
        if path.suffix.lower() not in (".svg", ".png"):
            raise ConfigError(f"save: got {path.name!r}, wanted a name that ends in .svg or .png")
        with replacing(path) as temporary:
            if path.suffix.lower() == ".svg":
                temporary.write_text(svg_of(figure), encoding="utf-8")
            else:
                figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})


def good_limits(
    values: Sequence[float], shown: Sequence[float], *, maximize: bool, above: float
) -> tuple[float, float]:
    """Limits of an axis that hold the best of `values`; bad ones that lie far from the rest are cut off.

    shown: values that lie within them in any case. above: room beyond the best, as a share of the range.
    """
    sign = 1.0 if maximize else -1.0
    scores = sign * np.asarray([*values, *shown], dtype=np.float64)
    best, quarter = float(scores.max()), float(np.quantile(scores, 0.25))
    bad = float(scores.min())
    if best > quarter:
        bad = max(bad, quarter - 1.2 * (best - quarter))
    bad = min(bad, *(sign * value for value in shown), best)
    room = (best - bad) or 0.1 * abs(best) or 1.0
    low, high = bad - 0.06 * room, best + above * room
    return (low, high) if maximize else (-high, -low)


def scatter_within(axes: Axes, x: Column, y: Column, *, color: str, hollow: bool = False) -> None:
    """Draws dots at [N] places, and triangles at the edge of the plot for those that lie outside."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    outside = {"<": x < left, ">": x > right, "v": y < low, "^": y > high}
    inside = ~np.any(list(outside.values()), axis=0)
    edges = axes.viewLim.padded(-0.02 * axes.viewLim.width, -0.02 * axes.viewLim.height)
    x = np.where(inside, x, x.clip(edges.x0, edges.x1))
    y = np.where(inside, y, y.clip(edges.y0, edges.y1))
    many = len(x) > _MANY
    for marker, chosen in {"o": inside, **outside}.items():
        (dots,) = axes.plot(x[chosen], y[chosen], marker, markersize=2.7 if many else 5.5, alpha=0.7)
        dots.set(markerfacecolor=PAPER if hollow else color, markeredgecolor=color if hollow else PAPER)
        dots.set(markeredgewidth=1.0 if hollow else 0.5 * (not many), rasterized=many, zorder=3)


def tidy_ticks(axes: Axes, *, most: int, whole: bool = False) -> None:
    """About `most` round ticks an axis: plain numbers, or such as `"1.5M"` where those would be long.

    whole: the horizontal axis counts something, of which there are no halves.
    """
    for axis in (axes.xaxis, axes.yaxis):
        integer = whole and axis is axes.xaxis
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=integer))
        plain = ScalarFormatter(useOffset=False)
        # Powers of ten would be written beside the axis.
        plain.set_scientific(False)
        size = float(np.abs(axis.get_view_interval()).max())
        axis.set_major_formatter(plain if 1e-4 <= size < 1e4 else EngFormatter(sep=""))
