"""Pictures of architectures: cells with operations on edges or nodes, tables of choices, whole networks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

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
    heading_width,
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

Line = tuple[str, float, bool, str]
"""One line of text in a box: the text, points, whether it is bold, its colour."""

BUDGET = 2000
"""Of `nas.show.draw.layout.effort` for one picture of cells: some seconds on one core."""
EACH = 10
"""Of the same, for a panel whatever is in it."""
EMPTY = "empty: no path from input to output"
_CONNECT, _CONNECTION = "connect", Look("connection", MUTED)
_PAGE = 13.0
"""Inches that a picture is wide at most, where it can be."""
_PAD, _HEADER, _NOTE, _BETWEEN = 0.3, 0.42, 0.34, 0.22
_NODE_SIZE, _LABEL_SIZE, _SHAPE_SIZE = 13.0, 11.0, 10.0


_TEXT, _LINE, _GAP, _BESIDE = 11.0, 0.27, 0.3, 0.6
_ROWS, _MOST_ROWS = 16, 120


@dataclass(frozen=True, slots=True)
class ChoiceTable:
    """Choices as rows of a name and what was chosen there, in blocks beside each other.

    more: how many rows were left out.
    """

    blocks: tuple[tuple[tuple[str, str], ...], ...] = ()
    more: int = 0

    @classmethod
    def of(cls, choices: Mapping[str, str]) -> ChoiceTable:
        """One row for each decision, or for all whose names are the same up to the last slash.

        `stage0/width: 16` and `stage0/depth: 2` are the row `stage0`, `width 16   depth 2`. A block has
        sixteen rows, or more where the blocks would be wider than a page.
        """
        found: dict[str, list[str]] = {}
        for name, option in choices.items():
            group, _, last = name.rpartition("/")
            cell = clean(f"{last} {option}" if group else option, limit=40)
            found.setdefault(clean(group or name, limit=40), []).append(cell)
        rows = [(name, "   ".join(cells)) for name, cells in found.items()]
        kept = rows[:_MOST_ROWS]
        for count in range(max(1, ceil(len(kept) / _ROWS)), 0, -1):
            length = max(1, ceil(len(kept) / count))
            blocks = tuple(tuple(kept[at : at + length]) for at in range(0, len(kept), length))
            table = cls(blocks, len(rows) - len(kept))
            if table.width < _PAGE - 1:
                break
        return table

    @property
    def width(self) -> float:
        """Inches that it takes."""
        return sum(sum(_widths(block)) + _BESIDE for block in self.blocks) - _BESIDE * bool(self.blocks)

    @property
    def height(self) -> float:
        """The same."""
        return _LINE * (max(map(len, self.blocks), default=0) + bool(self.more))

    def draw(self, sheet: Axes, left: float, top: float) -> None:
        """Writes it with its upper left corner at (left, top) inches."""
        if self.more:
            bottom = top - self.height + _LINE / 2
            write(sheet, left, bottom, f"and {self.more:,} more", size=_TEXT, ha="left")
        for block in self.blocks:
            names, cells = _widths(block)
            for line, (name, cell) in enumerate(block):
                y = top - _LINE * (line + 0.5)
                write(sheet, left, y, name, size=_TEXT, color=MUTED, ha="left")
                write(sheet, left + names, y, cell, size=_TEXT, ha="left")
            left += names + cells + _BESIDE


def _widths(block: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """Inches from a name to what was chosen, and of the longest of these."""
    names, cells = (max(text_size(text, _TEXT)[0] for text in column) for column in zip(*block, strict=True))
    return names + _GAP, cells


@dataclass(frozen=True, slots=True)
class _Panel:
    """One cell or table, laid out but not yet drawn; `name` tells its artists apart in the SVG."""

    name: str
    header: str
    note: str = ""
    graph: nx.DiGraph[str] = field(default_factory=nx.DiGraph)
    layout: Layout = Layout(0.0, 0.0, {}, {})  # noqa: RUF009 - a frozen value
    table: ChoiceTable = ChoiceTable()

    @property
    def width(self) -> float:
        words = text_size(self.header, 13, bold=True)[0], text_size(self.note, 11)[0]
        return max(self.table.width, self.layout.width, *words) + 2 * _PAD

    @property
    def height(self) -> float:
        inner = max(self.table.height, self.layout.height)
        return inner + 2 * _PAD + _HEADER * bool(self.header) + _NOTE * bool(self.note)


@styled
def draw_cells(graphs: Mapping[str, nx.DiGraph[str]], *, title: str = "", subtitle: str = "") -> Figure:
    """Draws every cell from left to right, with one legend for the operations that occur.

    graphs: cell graphs by kind (`"normal"`, `"reduce"`, ...); nodes carry `role` and `label`, edges `op`. A
      node with an `op` of its own shows that, and an edge whose `op` is `"connect"` is a plain arrow. The
      `values` of the first graph are listed, and so is a chain of operations that is longer than a page.
    Panels stand side by side while they fit a page, else below each other. Cells too large to be laid out in
    some seconds are only named.
    """
    panels = _panels(graphs)
    gaps = _BETWEEN * max(len(panels) - 1, 0)
    across = sum(panel.width for panel in panels) + gaps
    beside = across <= _PAGE
    least = max(4.5, heading_width(title, subtitle))
    spare = max(0.0, least - across) / max(len(panels), 1)
    inner = max(across, least) if beside else max(least, *(panel.width for panel in panels))
    heights = [panel.height for panel in panels]
    body = max(heights, default=0.0) if beside else sum(heights) + gaps
    figure, sheet = page(inner, body)
    x, top = 0.0, body
    for panel in panels:
        width, height = (panel.width + spare, body) if beside else (inner, panel.height)
        _draw_panel(sheet, panel, (x, top - height), (width, height))
        x, top = (x + width + _BETWEEN, top) if beside else (x, top - height - _BETWEEN)
    keys = _op_keys([panel.graph for panel in panels])
    return finish(figure, title=title, subtitle=subtitle, keys=keys)


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
    """The cells in their order as far as the budget goes; all others in one panel that says so."""
    panels, left_out, spent = [], [], 0
    values = next((graph.graph.get("values") for graph in graphs.values()), None) or {}
    if values:
        panels.append(_Panel("values", "values", table=ChoiceTable.of(values)))
    for i, (kind, graph) in enumerate(graphs.items()):
        if values and {str(name) for *_, name in graph.edges(data="decision", default="")} <= set(values):
            continue  # a chain that only stands for the values
        cost = effort(graph) + EACH
        if spent + cost > BUDGET:
            left_out.append(f"{clean(kind)}: {len(graph):,} nodes, {graph.number_of_edges():,} edges")
        else:
            panels.append(_panel(f"cell{i}", kind, graph))
            spent += cost
    if left_out:
        more = f" and {len(left_out) - 1:,} more" if len(left_out) > 1 else ""
        panels.append(_Panel("large", "too large to draw", clean(left_out[0] + more, limit=80)))
    return panels


def _panel(name: str, kind: str, graph: nx.DiGraph[str]) -> _Panel:
    labels = {}
    for source, target, op in graph.edges(data="op", default="concat"):
        if op != _CONNECT and op_kind(op) != "concat":
            width, height = text_size(_op_text(op), _LABEL_SIZE)
            labels[source, target] = (width + 0.2, height + 0.11)
    layout = arrange(graph, sizes={node: _node_size(graph, node) for node in graph}, labels=labels)
    if layout.width > _PAGE and (chain := _chain(graph)):
        return _Panel(name, clean(kind), table=ChoiceTable.of(chain))
    return _Panel(name, clean(kind), "" if _connected(graph) else EMPTY, graph, layout)


def _chain(graph: nx.DiGraph[str]) -> dict[str, str]:
    """Operations by decision where they follow one another, each of another decision; else nothing."""
    ops = {str(data.get("decision", "")): str(data.get("op", "")) for *_, data in graph.edges(data=True)}
    single = len(ops.keys() - {""}) == graph.number_of_edges() == len(graph) - 1
    return ops if single and all(degree < 2 for _, degree in graph.out_degree) else {}


def _op_text(op: str) -> str:
    return clean(op) or "?"


def _node_label(graph: nx.DiGraph[str], node: str) -> str:
    data = graph.nodes[node]
    return node_text(str(data.get("op", data.get("label", node)))) or "?"


def _node_size(graph: nx.DiGraph[str], node: str) -> tuple[float, float]:
    width, height = text_size(_node_label(graph, node), _NODE_SIZE, bold=True)
    ports = max(graph.in_degree(node), graph.out_degree(node))
    return max(width + 0.26, 0.46), max(height + 0.24, 0.15 * ports)


def _connected(graph: nx.DiGraph[str]) -> bool:
    inputs, outputs = ([n for n in graph if role_of(graph, n) == role] for role in ("input", "output"))
    return any(nx.has_path(graph, a, b) for a, b in itertools.product(inputs, outputs))


def _draw_panel(sheet: Axes, panel: _Panel, corner: tuple[float, float], size: tuple[float, float]) -> None:
    (x, y), (width, height) = corner, size
    _draw_box(sheet, (x + width / 2, y + height / 2), size, face=PANEL, edge="none", zorder=0)
    top = y + height
    if panel.header:
        write(sheet, x + _PAD, top - 0.3, panel.header, size=13, bold=True, ha="left")
        top -= _HEADER
    if panel.note:
        alert = shade(LOOKS["sep"].color, 0.2)
        write(sheet, x + _PAD, top - 0.22, panel.note, size=11, color=alert, ha="left")
        top -= _NOTE
    panel.table.draw(sheet, x + _PAD, top - 0.2)
    graph, layout = panel.graph, panel.layout
    origin = x + (width - layout.width) / 2, y + (top - y - layout.height) / 2
    for number, (source, target, op) in enumerate(graph.edges(data="op", default="concat")):
        look = _CONNECTION if op == _CONNECT else LOOKS[op_kind(op)]
        wire = layout.wires[source, target]
        _draw_wire(sheet, wire, origin, look, width=1.3 if wire.label is None else 2.2, paper=PANEL)
        if wire.label is not None:
            (wide, tall), centre = text_size(_op_text(op), _LABEL_SIZE), _moved(wire.label, origin)
            face, edge, ink = _tones(look.color)
            lines: list[Line] = [(_op_text(op), _LABEL_SIZE, False, ink)]
            gid = f"{panel.name}-label{number}"
            box = wide + 0.18, tall + 0.09
            _draw_box(sheet, centre, box, lines, face=face, edge=edge, zorder=5, gid=gid)
    for number, (node, centre) in enumerate(layout.nodes.items()):
        face, edge, ink = _node_tones(graph, node)
        lines = [(_node_label(graph, node), _NODE_SIZE, True, ink)]
        gid, box = f"{panel.name}-node{number}", _node_size(graph, node)
        _draw_box(sheet, _moved(centre, origin), box, lines, face=face, edge=edge, gid=gid)


def _moved(point: tuple[float, float], origin: tuple[float, float]) -> tuple[float, float]:
    return point[0] + origin[0], point[1] + origin[1]


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
    centre: tuple[float, float],
    size: tuple[float, float],
    lines: Sequence[Line] = (),
    *,
    face: str,
    edge: str,
    zorder: float = 6,
    gid: str = "",
) -> None:
    """A rounded box around lines of text."""
    (x, y), (width, height) = centre, size
    shape = f"round,pad=0,rounding_size={min(0.1, 0.3 * height):.3f}"
    box = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=shape, zorder=zorder)
    box.set(facecolor=face, edgecolor=edge, linewidth=1.2, gid=gid or None)
    sheet.add_patch(box)
    top = y + _tall(lines) / 2
    for line in lines:
        text, points, bold, color = line
        written = write(sheet, x, top - _tall([line]) / 2, text, size=points, color=color, bold=bold)
        written.set_gid(f"{gid}-text")
        top -= _tall([line])


def _tall(lines: Sequence[Line]) -> float:
    """Inches that lines of text take."""
    return sum(points * 0.02 for _, points, _, _ in lines)


def _draw_wire(
    sheet: Axes, wire: Wire, origin: tuple[float, float], look: Look, *, width: float, paper: str
) -> None:
    """A line with an arrowhead, in a casing in the colour of the paper that parts it from lines below."""
    points = np.asarray(wire.points()) + origin
    tip, forward = points[-1].copy(), np.sign(points[-1, 0] - points[-2, 0])
    length, half = (0.15, 0.062) if width > 2 else (0.11, 0.045)
    points[-1, 0] -= forward * (length - 0.02)
    curve = [Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
    path = Path(points, [Path.MOVETO, Path.LINETO, *(curve * (len(wire.runs) - 1))])
    casing = PathPatch(path, facecolor="none", edgecolor=paper, linewidth=width + 3, zorder=width)
    line = PathPatch(path, facecolor="none", edgecolor=look.color, linewidth=width, zorder=width)
    line.set_capstyle("butt")
    set_dash(line, look.dash)
    corners = tip + np.asarray([(0, 0), (-forward * length, half), (-forward * length, -half)])
    head = Polygon(corners, closed=True, facecolor=look.color, edgecolor="none", zorder=4)
    for patch in (casing, line, head):
        sheet.add_patch(patch)


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
        _draw_wire(sheet, wire, (0.0, 0.0), look, width=width, paper=PAPER)
    for number, (block, centre) in enumerate(layout.nodes.items()):
        face, edge, _ = _tones(colors[kinds[block]])
        _draw_box(sheet, centre, box, lines[block], face=face, edge=edge, gid=f"block{number}")
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
