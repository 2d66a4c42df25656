"""Pictures of architectures: cells with operations on edges or nodes, tables of choices, whole networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from numpy.typing import NDArray

from nas.show.draw.layout import Layout, Wire, arrange, effort, role_of
from nas.show.draw.style import (
    HAIR,
    INK,
    LOOKS,
    MUTED,
    PANEL,
    PAPER,
    Look,
    clean,
    finish,
    key,
    node_text,
    op_kind,
    page,
    set_dash,
    shade,
    styled,
    text_size,
    tint,
    write,
)

Point = NDArray[np.float64]
Line = tuple[str, float, bool, str]
"""One line of text in a box: the text, points, whether it is bold, its colour."""

BUDGET = 2000
"""Of `nas.show.draw.layout.effort` for one picture of cells: some seconds on one core."""
EMPTY = "empty: no path from input to output"
_CONNECT, _CONNECTION = "connect", Look("connection", MUTED)
_PAGE = 13.0
"""Inches that a picture is wide at most, where it can be."""
_PAD, _HEADER, _BETWEEN = 0.3, 0.42, 0.22
_NODE_SIZE, _LABEL_SIZE, _SHAPE_SIZE = 13.0, 11.0, 10.0


@dataclass(frozen=True, slots=True)
class _Panel:
    """One cell or table.

    draw: fills an area of this size, in inches, whose lower left corner it is given. graph: of a cell.
    """

    header: str
    width: float
    height: float
    draw: Callable[[Axes, float, float], None]
    graph: nx.DiGraph[str] = field(default_factory=nx.DiGraph)


@styled
def draw_cells(graphs: Mapping[str, nx.DiGraph[str]], *, title: str = "", subtitle: str = "") -> Figure:
    """Draws every cell from left to right, with one legend for the operations that occur.

    graphs: cell graphs by kind (`"normal"`, `"reduce"`, ...); nodes carry `role` and `label`, edges `op`. A
      node with an `op` of its own shows that, and an edge whose `op` is `"connect"` is a plain arrow. The
      `values` of the first graph are listed, and so is a chain of operations that is longer than a page.
    Panels stand side by side as far as a page is wide, then below each other. Cells too large to be laid out
    in some seconds are only named.
    """
    panels, rows = _panels(graphs), list[list[_Panel]]([[]])
    for panel in panels:
        if rows[-1] and _across([*rows[-1], panel]) > _PAGE:
            rows.append([])
        rows[-1].append(panel)
    heights = [max((panel.height for panel in row), default=0.0) + 2 * _PAD + _HEADER for row in rows]
    inner, top = max([4.5, *map(_across, rows)]), sum(heights) + _BETWEEN * (len(rows) - 1)
    figure, sheet = page(inner, top)
    for row, height in zip(rows, heights, strict=True):
        x, spare = 0.0, (inner - _across(row)) / max(len(row), 1)
        for panel in row:
            width = _across([panel]) + spare
            size = width, height
            _draw_box(sheet, (x + width / 2, top - height / 2), size, face=PANEL, edge=PANEL, zorder=0)
            write(sheet, x + _PAD, top - _PAD, panel.header, size=13, bold=True, ha="left")
            left, low = x + (width - panel.width) / 2, top - height + _PAD
            panel.draw(sheet, left, low + (height - 2 * _PAD - _HEADER - panel.height) / 2)
            x += width + _BETWEEN
        top -= height + _BETWEEN
    return finish(figure, title=title, subtitle=subtitle, keys=_op_keys(panel.graph for panel in panels))


def _across(row: Sequence[_Panel]) -> float:
    """Inches that panels beside each other take."""
    widths = [max(panel.width, text_size(panel.header, 13, bold=True)[0]) + 2 * _PAD for panel in row]
    return sum(widths) + _BETWEEN * (len(row) - 1)


def _op_keys(graphs: Iterable[nx.DiGraph[str]]) -> list[Line2D]:
    edges, nodes = set(), set()
    for graph in graphs:
        edges |= {op_kind(op) for *_, op in graph.edges(data="op", default="concat") if op != _CONNECT}
        nodes |= {op_kind(data["op"]) for _, data in graph.nodes(data=True) if "op" in data}
    return [
        key(look.label, look.color, dash=look.dash, marker="" if kind in edges else "s")
        for kind, look in LOOKS.items()
        if kind in edges | nodes
    ]


def _panels(graphs: Mapping[str, nx.DiGraph[str]]) -> list[_Panel]:
    """The values, and the cells in their order as far as the budget goes; the others are named."""
    panels, large, spent = [], [], 0
    values = next((graph.graph.get("values") for graph in graphs.values()), None) or {}
    if values:
        panels.append(_table("values", values))
    for kind, graph in graphs.items():
        if values and {str(name) for *_, name in graph.edges(data="decision", default="")} <= set(values):
            continue  # a chain that only stands for the values
        if len(chain := _chain(graph)) > _LONGEST_CHAIN:
            panels.append(_table(clean(kind), chain))
        elif spent + (cost := effort(graph)) > BUDGET:
            large.append(f"{clean(kind)}: {len(graph):,} nodes, {graph.number_of_edges():,} edges")
        else:
            panels.append(_cell(kind, graph))
            spent += cost + 10
    if large:
        more = f" and {len(large) - 1:,} more" if len(large) > 1 else ""
        header = clean(f"too large to draw: {large[0]}{more}", limit=80)
        panels.append(_Panel(header, 0.0, 0.0, lambda *_: None))
    return panels


def _cell(kind: str, graph: nx.DiGraph[str]) -> _Panel:
    labels = {}
    for source, target, op in graph.edges(data="op", default="concat"):
        if op != _CONNECT and op_kind(op) != "concat":
            width, height = text_size(_op_text(op), _LABEL_SIZE)
            labels[source, target] = (width + 0.2, height + 0.11)
    layout = arrange(graph, sizes={node: _node_size(graph, node) for node in graph}, labels=labels)
    header = clean(kind) if _connected(graph) else f"{clean(kind)} is {EMPTY}"

    def draw(sheet: Axes, left: float, low: float) -> None:
        _draw_graph(sheet, graph, layout, np.asarray((left, low)))

    return _Panel(header, layout.width, layout.height, draw, graph)


def _connected(graph: nx.DiGraph[str]) -> bool:
    inputs, outputs = ([n for n in graph if role_of(graph, n) == role] for role in ("input", "output"))
    return any(nx.has_path(graph, a, b) for a, b in itertools.product(inputs, outputs))


# -- choices as a table -------------------------------------------------------------------------------

_TEXT, _LINE, _GAP, _BESIDE = 11.0, 0.27, 0.3, 0.6
_ROWS, _MOST_ROWS, _LONGEST_CHAIN = 16, 120, 7


def _chain(graph: nx.DiGraph[str]) -> dict[str, str]:
    """Operations by decision where they follow one another, each of another decision; else nothing."""
    ops = {str(data.get("decision", "")): str(data.get("op", "")) for *_, data in graph.edges(data=True)}
    single = len(ops.keys() - {""}) == graph.number_of_edges() == len(graph) - 1
    return ops if single and all(degree < 2 for _, degree in graph.out_degree) else {}


def _table(header: str, choices: Mapping[str, str]) -> _Panel:
    """A row for each decision, or for all whose names are the same up to the last slash.

    `stage0/width: 16` and `stage0/depth: 2` are the row `stage0`, `width 16   depth 2`. Blocks of at least
    sixteen rows stand beside each other as far as a page is wide.
    """
    found: dict[str, list[str]] = {}
    for name, option in choices.items():
        group, _, last = name.rpartition("/")
        cell = clean(f"{last} {option}" if group else option, limit=40)
        found.setdefault(clean(group or name, limit=40), []).append(cell)
    rows = [(name, "   ".join(cells)) for name, cells in found.items()][:_MOST_ROWS]
    name_width = max(text_size(name, _TEXT)[0] for name, _ in rows) + _GAP
    block_width = name_width + max(text_size(cells, _TEXT)[0] for _, cells in rows) + _BESIDE
    length = min(len(rows), max(_ROWS, -(-len(rows) // max(1, int((_PAGE - 1) / block_width)))))
    blocks, more = -(-len(rows) // length), len(found) - len(rows)
    height = _LINE * (length + bool(more))

    def draw(sheet: Axes, left: float, low: float) -> None:
        for place, (name, cells) in enumerate(rows):
            block, line = divmod(place, length)
            x, y = left + block * block_width, low + height - _LINE * (line + 0.5)
            write(sheet, x, y, name, size=_TEXT, color=MUTED, ha="left")
            write(sheet, x + name_width, y, cells, size=_TEXT, ha="left")
        if more:
            write(sheet, left, low + _LINE / 2, f"and {more:,} more", size=_TEXT, ha="left")

    return _Panel(header, blocks * block_width - _BESIDE, height, draw)


# -- nodes and edges ----------------------------------------------------------------------------------


def _op_text(op: str) -> str:
    return clean(op) or "?"


def _node_label(graph: nx.DiGraph[str], node: str) -> str:
    data = graph.nodes[node]
    return node_text(str(data.get("op", data.get("label", node)))) or "?"


def _node_size(graph: nx.DiGraph[str], node: str) -> tuple[float, float]:
    width, height = text_size(_node_label(graph, node), _NODE_SIZE, bold=True)
    ports = max(graph.in_degree(node), graph.out_degree(node))
    return max(width + 0.26, 0.46), max(height + 0.24, 0.15 * ports)


def _draw_graph(sheet: Axes, graph: nx.DiGraph[str], layout: Layout, origin: Point) -> None:
    for source, target, op in graph.edges(data="op", default="concat"):
        look = _CONNECTION if op == _CONNECT else LOOKS[op_kind(op)]
        wire = layout.wires[source, target]
        _draw_wire(sheet, wire, origin, look, width=1.3 if wire.label is None else 2.2, paper=PANEL)
        if wire.label is not None:
            wide, tall = text_size(_op_text(op), _LABEL_SIZE)
            face, edge, ink = _tones(look.color)
            lines: list[Line] = [(_op_text(op), _LABEL_SIZE, False, ink)]
            box = wide + 0.18, tall + 0.09
            _draw_box(sheet, origin + wire.label, box, lines, face=face, edge=edge, zorder=5)
    for node, centre in layout.nodes.items():
        face, edge, ink = _node_tones(graph, node)
        lines = [(_node_label(graph, node), _NODE_SIZE, True, ink)]
        _draw_box(sheet, origin + centre, _node_size(graph, node), lines, face=face, edge=edge)


def _tones(color: str) -> tuple[str, str, str]:
    """Face, edge and ink of a box in a colour."""
    return tint(color, 0.88), color, shade(color, 0.38)


def _node_tones(graph: nx.DiGraph[str], node: str) -> tuple[str, str, str]:
    if graph.degree(node) == 0:
        return PANEL, HAIR, MUTED
    if "op" in graph.nodes[node]:
        return _tones(LOOKS[op_kind(str(graph.nodes[node]["op"]))].color)
    role = {"input": ("#3B5B7A", "#3B5B7A", PAPER), "output": (INK, INK, PAPER)}
    return role.get(role_of(graph, node), (PAPER, INK, INK))


def _draw_box(
    sheet: Axes,
    centre: Point | tuple[float, float],
    size: tuple[float, float],
    lines: Sequence[Line] = (),
    *,
    face: str,
    edge: str,
    zorder: float = 6,
) -> None:
    """A rounded box around lines of text."""
    (x, y), (width, height) = centre, size
    shape = f"round,pad=0,rounding_size={min(0.1, 0.3 * height):.3f}"
    box = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=shape, zorder=zorder)
    box.set(facecolor=face, edgecolor=edge, linewidth=1.2)
    sheet.add_patch(box)
    top = y + _tall(lines) / 2
    for line in lines:
        text, points, bold, color = line
        write(sheet, x, top - _tall([line]) / 2, text, size=points, color=color, bold=bold)
        top -= _tall([line])


def _tall(lines: Sequence[Line]) -> float:
    """Inches that lines of text take."""
    return sum(points * 0.02 for _, points, _, _ in lines)


def _draw_wire(sheet: Axes, wire: Wire, origin: Point, look: Look, *, width: float, paper: str) -> None:
    """A line with an arrowhead, in a casing in the colour of the paper that parts it from lines below."""
    points = np.asarray(wire.points()) + origin
    tip, forward = points[-1].copy(), np.sign(points[-1, 0] - points[-2, 0])
    length, half = (0.15, 0.062) if width > 2 else (0.11, 0.045)
    points[-1, 0] -= forward * (length - 0.02)
    curve = [Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
    path = Path(points, [Path.MOVETO, Path.LINETO, *(curve * (len(wire.runs) - 1))])
    for color, extra, dash in ((paper, 3, ()), (look.color, 0, look.dash)):
        line = PathPatch(path, facecolor="none", edgecolor=color, linewidth=width + extra, zorder=width)
        line.set_capstyle("butt")
        set_dash(line, dash)
        sheet.add_patch(line)
    corners = tip + np.asarray([(0, 0), (-forward * length, half), (-forward * length, -half)])
    sheet.add_patch(Polygon(corners, closed=True, facecolor=look.color, edgecolor="none", zorder=4))


# -- whole networks -----------------------------------------------------------------------------------

_KIND_COLORS = {
    "stem": "#56616C",
    "normal": "#0072B2",
    "cell": "#0072B2",
    "reduce": "#D55E00",
    "block": "#00886A",
    "head": "#A0307F",
}
_SPARE = ("#B07C00", "#332288", "#44AA99", "#882255", "#117733", "#4477AA")
_LINES = 3
_NEXT, _FURTHER = Look("next", INK), Look("further", MUTED)


@styled
def draw_network(graph: nx.DiGraph[str], *, title: str = "") -> Figure:
    """Draws a network's blocks in rows that turn at the end, so that each block is next to its successor.

    graph: a DAG in topological order; nodes carry `label` (lines allowed), `shape` and `kind`. Arrows between
    blocks that follow one another are thick; all others, such as a cell's second input, are thin.
    """
    kinds = {block: str(kind) for block, kind in graph.nodes(data="kind", default="block")}
    spare = itertools.cycle(_SPARE)
    colors = {kind: _KIND_COLORS.get(kind) or next(spare) for kind in dict.fromkeys(kinds.values())}
    lines = {block: _block_lines(graph, block, colors[kinds[block]]) for block in graph}
    widths = [text_size(text, size, bold=bold)[0] for own in lines.values() for text, size, bold, _ in own]
    heights = [_tall(own) for own in lines.values()]
    box = max([0.66, *widths]) + 0.24, max([0.35, *heights]) + 0.2
    layout = arrange(graph, sizes=dict.fromkeys(graph, box), labels={}, width=_PAGE - 2)
    figure, sheet = page(max(layout.width, 3.0), max(layout.height, 0.4))
    if not graph:
        write(sheet, 0, 0.2, "no blocks", color=MUTED, ha="left")
    order = {block: i for i, block in enumerate(graph)}
    for (source, target), wire in layout.wires.items():
        follows = order[target] - order[source] == 1
        look, width = (_NEXT, 2.2) if follows else (_FURTHER, 1.3)
        _draw_wire(sheet, wire, np.zeros(2), look, width=width, paper=PAPER)
    for block, centre in layout.nodes.items():
        face, edge, _ = _tones(colors[kinds[block]])
        _draw_box(sheet, centre, box, lines[block], face=face, edge=edge)
    keys = [key(kind, tint(color, 0.35), marker="s") for kind, color in colors.items()]
    return finish(figure, title=title, keys=keys)


def _block_lines(graph: nx.DiGraph[str], block: str, color: str) -> list[Line]:
    """The label of a block, its first line bold, and below it the shape of what leaves the block."""
    data = graph.nodes[block]
    found = [line for line in str(data.get("label", block)).splitlines() if line.strip()]
    kept = [*found[: _LINES - 1], " ".join(found[_LINES - 1 :])]
    texts = [text for text in map(node_text, kept) if text] or ["?"]
    lines: list[Line] = [(text, 11.5, i == 0, _tones(color)[2]) for i, text in enumerate(texts)]
    shape = clean(str(data.get("shape", "")))
    return [*lines, (shape, _SHAPE_SIZE, False, MUTED)] if shape else lines
