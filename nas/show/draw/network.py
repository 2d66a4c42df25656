"""Pictures of whole networks: blocks in serpentine rows, in the order of the data."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from nas.show.draw.style import (
    INK,
    MUTED,
    Heading,
    Key,
    Legend,
    clean,
    node_text,
    page,
    shade,
    text_size,
    tint,
    write,
)

_MARGIN, _GAP, _LIFT, _STEP = 0.35, 0.42, 0.3, 0.13
_PAGE, _LABEL_SIZE, _SHAPE_SIZE, _LINES = 11.0, 11.5, 10.0, 3
_COLORS = {
    "stem": "#56616C",
    "normal": "#0072B2",
    "cell": "#0072B2",
    "reduce": "#D55E00",
    "block": "#00886A",
    "head": "#A0307F",
}
_SPARE = ("#B07C00", "#332288", "#44AA99", "#882255", "#117733", "#4477AA")


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the blocks stand: `places` are (row, column), `width` and `height` the size of every box."""

    places: Mapping[str, tuple[int, int]]
    columns: int
    rows: int
    width: float
    height: float
    lift: float

    def centre(self, block: str) -> tuple[float, float]:
        """Inches from the lower left corner of the drawing."""
        row, column = self.places[block]
        x = column * (self.width + _GAP) + self.width / 2
        return x, (self.rows - 1 - row) * self.pitch + self.height / 2

    @property
    def pitch(self) -> float:
        return self.height + _GAP + self.lift

    @property
    def size(self) -> tuple[float, float]:
        tall = self.rows * self.height + (self.rows - 1) * (_GAP + self.lift) + self.lift
        return self.columns * (self.width + _GAP) - _GAP, tall


def draw_network(graph: nx.DiGraph[str], *, title: str = "") -> Figure:
    """Draws a network's blocks in rows that turn at the end, so that each block is next to its successor.

    graph: a DAG in topological order; nodes carry `label` (lines allowed), `shape` and `kind`. Edges between
    neighbours are arrows; all others, such as a cell's second input, are thin arcs.
    """
    plan = _plan(graph)
    colors = _kind_colors([str(kind) for _, kind in graph.nodes(data="kind", default="block")])
    heading = Heading(title)
    inner = max(plan.size[0], heading.width, 3.0)
    legend = Legend([Key(kind, tint(color, 0.35), mark="box") for kind, color in colors.items()], inner)
    foot = legend.height + (0.2 if legend.keys else 0.0)
    height = 2 * _MARGIN + heading.height + plan.size[1] + foot
    figure, sheet = page(inner + 2 * _MARGIN, height)
    heading.draw(sheet, _MARGIN, height - _MARGIN)
    legend.draw(sheet, _MARGIN, _MARGIN + legend.height)
    if not graph:
        write(sheet, _MARGIN, height - _MARGIN - heading.height - 0.2, "no blocks", color=MUTED, ha="left")
    origin = (_MARGIN + (inner - plan.size[0]) / 2, _MARGIN + foot)
    order = {block: i for i, block in enumerate(graph)}
    for source, target in graph.edges:
        if order[target] - order[source] == 1:
            _draw_step(sheet, plan, origin, source, target)
        else:
            _draw_arc(sheet, plan, origin, source, target)
    for number, block in enumerate(graph):
        kind = str(graph.nodes[block].get("kind", "block"))
        _draw_block(sheet, plan, origin, graph, block, color=colors[kind], gid=f"block{number}")
    return figure


def _kind_colors(kinds: Sequence[str]) -> dict[str, str]:
    spare = itertools.cycle(_SPARE)
    return {kind: _COLORS.get(kind) or next(spare) for kind in dict.fromkeys(kinds)}


def _lines(graph: nx.DiGraph[str], block: str) -> tuple[list[str], str]:
    attributes = graph.nodes[block]
    lines = [line for line in str(attributes.get("label", block)).splitlines() if line.strip()]
    kept = [*lines[: _LINES - 1], " ".join(lines[_LINES - 1 :])]
    shown = [text for text in map(node_text, kept) if text]
    return shown or ["?"], clean(str(attributes.get("shape", "")))


def _plan(graph: nx.DiGraph[str]) -> _Plan:
    width, height = 0.9, 0.55
    for block in graph:
        lines, shape = _lines(graph, block)
        sizes = [text_size(line, _LABEL_SIZE, bold=True)[0] for line in lines]
        width = max([width, text_size(shape, _SHAPE_SIZE)[0] + 0.24, *(size + 0.24 for size in sizes)])
        height = max(height, 0.23 * len(lines) + 0.21 * bool(shape) + 0.2)
    most = max(1, int((_PAGE + _GAP) / (width + _GAP)))
    rows = max(1, ceil(len(graph) / most))
    columns = max(1, ceil(len(graph) / rows))
    places = {}
    for i, block in enumerate(graph):
        row, along = divmod(i, columns)
        places[block] = (row, along if row % 2 == 0 else columns - 1 - along)
    order = {block: i for i, block in enumerate(graph)}
    reach = max((order[b] - order[a] for a, b in graph.edges), default=1)
    lift = 0.0 if reach < 2 else _LIFT + _STEP * min(reach - 2, 5)
    return _Plan(places, columns, rows, width, height, lift)


def _draw_step(sheet: Axes, plan: _Plan, origin: tuple[float, float], source: str, target: str) -> None:
    """An arrow between neighbours: along the row, or down where the rows turn."""
    (x0, y0), (x1, y1) = plan.centre(source), plan.centre(target)
    x0, y0, x1, y1 = x0 + origin[0], y0 + origin[1], x1 + origin[0], y1 + origin[1]
    if plan.places[source][0] != plan.places[target][0]:
        start, tip = (x0, y0 - plan.height / 2), (x1, y1 + plan.height / 2)
        stop, corners = (x1, tip[1] + 0.12), ((x1 - 0.075, tip[1] + 0.14), (x1 + 0.075, tip[1] + 0.14))
    else:
        side = 1 if x1 > x0 else -1
        start, tip = (x0 + side * plan.width / 2, y0), (x1 - side * plan.width / 2, y1)
        back = tip[0] - side * 0.14
        stop, corners = (tip[0] - side * 0.12, y1), ((back, y1 - 0.075), (back, y1 + 0.075))
    sheet.plot([start[0], stop[0]], [start[1], stop[1]], color=INK, linewidth=2.2, zorder=3)
    sheet.add_patch(Polygon([tip, *corners], closed=True, facecolor=INK, edgecolor="none", zorder=3))


def _draw_arc(sheet: Axes, plan: _Plan, origin: tuple[float, float], source: str, target: str) -> None:
    """A thin arc over the blocks between two of one row, or a swung line to another row."""
    (x0, y0), (x1, y1) = plan.centre(source), plan.centre(target)
    (row0, column0), (row1, column1) = plan.places[source], plan.places[target]
    half = plan.height / 2
    inset = 0.22 * plan.width
    if row0 == row1:
        side = 1 if x1 > x0 else -1
        start, tip = (x0 + side * inset, y0 + half), (x1 - side * inset, y1 + half)
        # A cubic rises to three quarters of its control points.
        rise = (_LIFT + _STEP * min(abs(column1 - column0) - 2, 5)) / 0.75
        controls = [(start[0], start[1] + rise), (tip[0], tip[1] + rise)]
    else:
        toward = (x1 > x0) - (x1 < x0) or (1 if row0 % 2 else -1)
        # Further out than the arc that leaves the target along its own row.
        start, tip = (x0 + toward * inset, y0 - half), (x1 - 1.7 * toward * inset, y1 + half)
        drop = 0.6 * (start[1] - tip[1])
        controls = [(start[0], start[1] - drop), (tip[0], tip[1] + drop)]
    points = [(x + origin[0], y + origin[1]) for x, y in (start, *controls, (tip[0], tip[1] + 0.08))]
    path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    sheet.add_patch(PathPatch(path, facecolor="none", edgecolor=MUTED, linewidth=1.3, zorder=2))
    x, y = tip[0] + origin[0], tip[1] + origin[1]
    corners = [(x, y), (x - 0.05, y + 0.11), (x + 0.05, y + 0.11)]
    sheet.add_patch(Polygon(corners, closed=True, facecolor=MUTED, edgecolor="none", zorder=2))


def _draw_block(
    sheet: Axes,
    plan: _Plan,
    origin: tuple[float, float],
    graph: nx.DiGraph[str],
    block: str,
    *,
    color: str,
    gid: str,
) -> None:
    x, y = plan.centre(block)
    x, y = x + origin[0], y + origin[1]
    corner = (x - plan.width / 2, y - plan.height / 2)
    box = FancyBboxPatch(corner, plan.width, plan.height, boxstyle="round,pad=0,rounding_size=0.1", zorder=5)
    box.set(facecolor=tint(color, 0.84), edgecolor=color, linewidth=1.5)
    box.set_gid(gid)
    sheet.add_patch(box)
    lines, shape = _lines(graph, block)
    top = y + (0.23 * len(lines) + 0.21 * bool(shape)) / 2
    for i, line in enumerate(lines):
        write(sheet, x, top - 0.23 * (i + 0.5), line, size=_LABEL_SIZE, bold=i == 0, color=shade(color, 0.45))
    if shape:
        write(sheet, x, top - 0.23 * len(lines) - 0.105, shape, size=_SHAPE_SIZE, color=MUTED)
