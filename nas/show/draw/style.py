"""What every picture shares: colours, safe text, text sizes, the page and its legend."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.textpath import TextToPath
from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter
from numpy.typing import ArrayLike, NDArray

from nas.errors import ConfigError

FONT = "DejaVu Sans"
INK, MUTED, HAIR, PANEL, PAPER = "#1B2733", "#667380", "#D5DBE1", "#F6F8FA", "#FFFFFF"
TEXT_LIMIT = 24

Mark = Literal["line", "dot", "ring", "cross", "box"]
HorizontalAlign = Literal["left", "center", "right"]
VerticalAlign = Literal["bottom", "center", "top"]


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
_MEASURE = TextToPath()
_SUBSCRIPTS = str.maketrans("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ")


def op_kind(name: str) -> str:
    """The family of an operation, a key of `LOOKS`, read from its name: `"sep_conv_3x3"` is `"sep"`."""
    lowered = name.strip().lower()
    return next((kind for kind, pattern in _PATTERNS if re.search(pattern, lowered)), "other")


def tint(color: str, amount: float) -> str:
    """`color` mixed with white; `amount` in [0, 1] is the share of white."""
    return to_hex(tuple(np.asarray(to_rgb(color)) * (1 - amount) + amount))


def shade(color: str, amount: float) -> str:
    """`color` mixed with black; `amount` in [0, 1] is the share of black."""
    return to_hex(tuple(np.asarray(to_rgb(color)) * (1 - amount)))


def palette(names: Iterable[str]) -> dict[str, Look]:
    """One look per name: the hue of its family, lighter and dashed for the family's later members."""
    looks: dict[str, Look] = {}
    members: dict[str, int] = {}
    for name in dict.fromkeys(names):
        kind = op_kind(name)
        rank = members[kind] = members.get(kind, -1) + 1
        if kind == "other":
            looks[name] = Look(name, _OTHERS[rank % len(_OTHERS)], _dash(rank // len(_OTHERS)))
        else:
            family = LOOKS[kind]
            looks[name] = Look(name, tint(family.color, min(0.3 * rank, 0.6)), family.dash or _dash(rank))
    return looks


def _dash(rank: int) -> tuple[float, ...]:
    return ((), (5.0, 1.6), (2.2, 1.4), (1.0, 1.4))[min(rank, 3)]


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


def node_text(label: str) -> str:
    """`clean(label)`, with `c_{k-2}` written with real subscripts."""
    match = re.fullmatch(r"(\w)_\{([0-9+\-=()aehijklmnoprstuvx]{1,6})\}", label)
    return match[1] + match[2].translate(_SUBSCRIPTS) if match else clean(label)


@lru_cache(maxsize=4096)
def text_size(text: str, size: float, *, bold: bool = False) -> tuple[float, float]:
    """Width and height in inches of one line of text at `size` points, without hinting."""
    font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
    width, _, _ = _MEASURE.get_text_width_height_descent(text, font, ismath=False)
    _, height, _ = _MEASURE.get_text_width_height_descent("lp", font, ismath=False)
    return width / 72, height / 72


def fit(text: str, size: float, width: float, *, bold: bool = False) -> str:
    """`text` shortened with an ellipsis until it is at most `width` inches wide."""
    shown = text
    while len(shown) > 1 and text_size(shown, size, bold=bold)[0] > width:
        shown = shown[:-2].rstrip() + "…"
    return shown


def page(width: float, height: float) -> tuple[Figure, Axes]:
    """A blank figure and invisible axes over all of it whose data units are inches."""
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    sheet = figure.add_axes((0, 0, 1, 1))
    sheet.set_axis_off()
    sheet.set(xlim=(0, width), ylim=(0, height))
    return figure, sheet


def plot_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Quiet axes at a place given in inches: no box, light horizontal rules, muted ticks."""
    total_width, total_height = figure.get_size_inches()
    rectangle = (left / total_width, bottom / total_height, width / total_width, height / total_height)
    axes = figure.add_axes(rectangle, facecolor="none")
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(HAIR)
    axes.grid(visible=True, axis="y", color=HAIR, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9.5, length=0, labelfontfamily=FONT)
    return axes


def write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float = 10,
    color: str = INK,
    bold: bool = False,
    ha: HorizontalAlign = "center",
    va: VerticalAlign = "center",
    angle: float = 0.0,
) -> Text:
    """Puts plain text on `axes`; nothing in it is read as mathematics."""
    artist = axes.text(x, y, text, fontsize=size, color=color, fontfamily=FONT, zorder=10)
    artist.set(ha=ha, va="center_baseline" if va == "center" else va, parse_math=False)
    artist.set(fontweight="bold" if bold else "normal", rotation=angle, rotation_mode="anchor")
    return artist


@dataclass(frozen=True, slots=True)
class Heading:
    """The words at the top of a picture; either may be empty."""

    title: str = ""
    subtitle: str = ""

    @property
    def height(self) -> float:
        """Inches that the heading takes."""
        return 0.42 * bool(self.title) + 0.27 * bool(self.subtitle) + 0.1 * bool(self.title or self.subtitle)

    @property
    def width(self) -> float:
        """Inches that the heading needs."""
        title, subtitle = self._lines()
        return max(text_size(title, 16, bold=True)[0], text_size(subtitle, 11)[0])

    def _lines(self) -> tuple[str, str]:
        return clean(self.title, limit=80), clean(self.subtitle, limit=110)

    def draw(self, sheet: Axes, x: float, top: float) -> None:
        """Writes the heading with its upper left corner at (x, top) inches."""
        title, subtitle = self._lines()
        if title:
            write(sheet, x, top - 0.18, title, size=16, bold=True, ha="left")
        if subtitle:
            y = top - (0.42 if title else 0.0) - 0.14
            write(sheet, x, y, subtitle, size=11, color=MUTED, ha="left")


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend: the mark that stands in the picture and what it means."""

    label: str
    color: str
    dash: tuple[float, ...] = ()
    mark: Mark = "line"

    @property
    def text(self) -> str:
        """The label as it is written."""
        return clean(self.label) or "?"

    @property
    def indent(self) -> float:
        """Inches from the start of the mark to the start of the label."""
        return 0.42 if self.mark == "line" else 0.25


_KEY_SIZE, _KEY_ROW, _KEY_GAP = 10.5, 0.29, 0.34


@dataclass(frozen=True, slots=True)
class Legend:
    """A legend that flows over as many rows as `width` inches ask for."""

    keys: Sequence[Key]
    width: float

    def _rows(self) -> list[list[tuple[float, Key]]]:
        rows: list[list[tuple[float, Key]]] = [[]]
        x = 0.0
        for key in self.keys:
            needed = key.indent + text_size(key.text, _KEY_SIZE)[0]
            if rows[-1] and x + needed > self.width:
                rows.append([])
                x = 0.0
            rows[-1].append((x, key))
            x += needed + _KEY_GAP
        return rows

    @property
    def height(self) -> float:
        """Inches that the legend takes, 0 without entries."""
        return _KEY_ROW * len(self._rows()) if self.keys else 0.0

    def draw(self, sheet: Axes, x: float, top: float) -> None:
        """Draws the legend with its upper left corner at (x, top) inches."""
        for row, entries in enumerate(self._rows()):
            y = top - _KEY_ROW * (row + 0.5)
            for offset, key in entries:
                _draw_mark(sheet, x + offset, y, key)
                write(sheet, x + offset + key.indent, y, key.text, size=_KEY_SIZE, ha="left")


def _draw_mark(sheet: Axes, x: float, y: float, key: Key) -> None:
    if key.mark == "line":
        (line,) = sheet.plot([x, x + 0.32], [y, y], color=key.color, linewidth=2.4)
        set_dash(line, key.dash)
        return
    marker = {"dot": "o", "ring": "o", "cross": "x", "box": "s"}[key.mark]
    size = {"dot": 7.0, "ring": 6.0, "cross": 6.0, "box": 10.0}[key.mark]
    (drawn,) = sheet.plot([x + 0.08], [y], marker, color=key.color, markersize=size, markeredgewidth=1.6)
    if key.mark == "ring":
        drawn.set_markerfacecolor(PAPER)


def set_dash(artist: Line2D | Patch, dash: tuple[float, ...]) -> None:
    """Gives a line or a patch its dash pattern; an empty one leaves it solid."""
    if dash:
        artist.set_linestyle((0, dash))


Column = NDArray[np.float64]

SERIES = ("#0072B2", "#D55E00", "#009E73", "#A0307F", "#E0A500", "#56B4E9", "#1B2733", "#98A2AB")
"""Colours in order of use, at least 16 CIELAB units apart for the three kinds of colour blindness."""


def finite(values: ArrayLike, *, who: str, shape: tuple[int, ...]) -> Column:
    """`values` as finite float64 of `shape`, in which -1 stands for any length; `who` names the argument."""
    array = np.asarray(values, dtype=np.float64)
    fits = array.ndim == len(shape) and all(w in (-1, s) for w, s in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("N" if length < 0 else str(length) for length in shape)
        raise ConfigError(f"{who}: got shape {array.shape}, wanted [{wanted}]")
    if not np.isfinite(array).all():
        raise ConfigError(
            f"{who}: {int((~np.isfinite(array)).sum())} of {array.size} numbers are NaN or infinite; "
            "leave out what was not measured"
        )
    return array


def bad_end(scores: Column) -> float:
    """Where an axis may cut off scores [N], larger being better, that lie far below the rest."""
    best, worst, quarter = float(scores.max()), float(scores.min()), float(np.quantile(scores, 0.25))
    return max(worst, quarter - 1.2 * (best - quarter)) if best > quarter else worst


def padded(low: float, high: float, *, below: float, above: float) -> tuple[float, float]:
    """The range from `low` to `high` with room at both ends, as shares of it; never empty."""
    spread = (high - low) or 0.1 * abs(high) or 1.0
    return low - below * spread, high + above * spread


def tidy_ticks(axes: Axes, *, most: int, whole: bool = False) -> None:
    """About `most` round ticks an axis: plain numbers, or such as `"1.5M"` where those would be long.

    whole: the horizontal axis counts something, of which there are no halves.
    """
    # In the corner an upright axis's label would touch that of the other axis.
    for axis, corner in ((axes.xaxis, 0.0), (axes.yaxis, 0.03)):
        low, high = axis.get_view_interval()
        integer = whole and axis is axes.xaxis
        ticks = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=integer).tick_values(low, high)
        axis.set_ticks([tick for tick in ticks if low + corner * (high - low) <= tick <= high])
        plain = ScalarFormatter(useOffset=False)
        # Powers of ten would be written beside the axis, where other words are.
        plain.set_scientific(False)
        short = 1e-4 <= max(abs(low), abs(high)) < 1e4
        axis.set_major_formatter(plain if short else EngFormatter(sep=""))


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """The places nearest to `wanted` in the least-squares sense, in its order, at least `gap` apart.

    All lie in [low, high], which must have room for them. Without the gaps this is isotonic regression,
    solved by pooling adjacent violators (Barlow et al. 1972, section 1.2).
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, count = wanted[index] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            other, size = pools.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        pools.append((mean, count))
    top = high - gap * (len(wanted) - 1)
    flat = [min(max(mean, low), top) for mean, count in pools for _ in range(count)]
    places = {index: flat[rank] + rank * gap for rank, index in enumerate(order)}
    return [places[index] for index in range(len(wanted))]
