"""Pictures of cells: operations as labelled, coloured edges between feature maps, or as coloured nodes.

Plain values, and chains of operations that are longer than a page, are tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from nas.show.draw.layout import Layout, Run, Wire, arrange, effort, role_of
from nas.show.draw.style import (
    HAIR,
    INK,
    LOOKS,
    MUTED,
    PANEL,
    PAPER,
    Heading,
    Key,
    Legend,
    Look,
    clean,
    node_text,
    op_kind,
    page,
    set_dash,
    shade,
    text_size,
    tint,
    write,
)

_SIZE, _LINE, _GAP, _BESIDE = 11.0, 0.27, 0.3, 0.6
_ROWS, _MOST, _WIDEST = 16, 120, 12.0
Row = tuple[str, tuple[str, ...]]
"""A name and what stands behind it, cell by cell."""


def rows_of(choices: Mapping[str, str]) -> list[Row]:
    """One row for each decision, or for all whose names are the same up to the last slash.

    `stage0/width: 16` and `stage0/depth: 2` are the row `stage0  width 16  depth 2`.
    """
    rows: dict[str, tuple[str, ...]] = {}
    for name, option in choices.items():
        group, _, last = name.rpartition("/")
        key, cell = (group, f"{last} {option}") if group else (name, option)
        rows[clean(key, limit=40)] = (*rows.get(clean(key, limit=40), ()), clean(cell, limit=40))
    return list(rows.items())


@dataclass(frozen=True)
class Table:
    """Rows in columns from the top to the bottom, those of each column aligned.

    blocks: the rows of each column. more: how many rows were left out.
    """

    blocks: tuple[tuple[Row, ...], ...]
    more: int = 0

    @staticmethod
    def of(choices: Mapping[str, str]) -> Table:
        """In so many columns as fit a page."""
        rows = rows_of(choices)
        kept = rows[:_MOST]
        columns = max(1, -(-len(kept) // _ROWS))
        while True:
            length = max(1, -(-len(kept) // columns))
            blocks = tuple(tuple(kept[at : at + length]) for at in range(0, len(kept), length))
            table = Table(blocks, len(rows) - len(kept))
            if columns == 1 or table.width <= _WIDEST:
                return table
            columns -= 1

    @property
    def width(self) -> float:
        """Inches that it takes."""
        return sum(sum(_widths(block)) for block in self.blocks) + _BESIDE * (len(self.blocks) - 1)

    @property
    def height(self) -> float:
        """The same."""
        return _LINE * (max(map(len, self.blocks), default=0) + bool(self.more))

    def draw(self, sheet: Axes, left: float, top: float) -> None:
        """Writes it with its upper left corner at (left, top) inches."""
        for block in self.blocks:
            widths = _widths(block)
            for line, (name, cells) in enumerate(block):
                x, y = left, top - _LINE * (line + 0.5)
                write(sheet, x, y, name, size=_SIZE, color=MUTED, ha="left")
                for cell, width in zip(cells, widths, strict=False):
                    x += width
                    write(sheet, x, y, cell, size=_SIZE, ha="left")
            left += sum(widths) + _BESIDE
        if self.more:
            text = f"and {self.more:,} more"
            write(
                sheet, left - self.width - _BESIDE, top - self.height + _LINE / 2, text, size=_SIZE, ha="left"
            )


def _widths(block: tuple[Row, ...]) -> list[float]:
    """Inches from the beginning of the name to the first cell, from that to the second, and so on."""
    longest = max((len(cells) for _, cells in block), default=0)
    widths = [max((text_size(name, _SIZE)[0] for name, _ in block), default=0.0) + _GAP]
    for at in range(longest):
        texts = [cells[at] for _, cells in block if at < len(cells)]
        widths.append(max(text_size(text, _SIZE)[0] for text in texts) + _GAP * (at + 1 < longest))
    return widths


BUDGET = 1_000_000
"""Of `nas.show.draw.layout.effort` for one picture: about ten seconds on one core."""
EACH = 5000
"""Of the same, for a panel whatever is in it."""
EMPTY = "empty: no path from input to output"
_CONNECT, _CONNECTION = "connect", Look("connection", MUTED)
_MARGIN, _PAD, _HEADER, _BETWEEN = 0.3, 0.3, 0.42, 0.22
_SIDE_BY_SIDE = 13.0
_NODE_SIZE, _LABEL_SIZE = 13.0, 11.0
_ROLE_COLORS = {"input": "#3B5B7A", "output": "#1B2733", "node": "#FFFFFF"}


@dataclass(frozen=True, slots=True)
class _Panel:
    """One cell, laid out but not yet drawn; `name` tells its artists apart in the SVG."""

    name: str
    header: str
    graph: nx.DiGraph[str]
    layout: Layout
    boxes: Mapping[str, tuple[float, float]]
    note: str = ""
    table: Table | None = None

    @property
    def width(self) -> float:
        words = max(text_size(self.header, 13, bold=True)[0], text_size(self.note, 11)[0])
        return max((self.table or self.layout).width, words) + 2 * _PAD

    @property
    def height(self) -> float:
        inner = (self.table or self.layout).height
        return inner + 2 * _PAD + _HEADER * bool(self.header) + 0.34 * bool(self.note)


def draw_cells(graphs: Mapping[str, nx.DiGraph[str]], *, title: str = "", subtitle: str = "") -> Figure:
    """Draws every cell from left to right, with one legend for the operations that occur.

    graphs: cell graphs by kind (`"normal"`, `"reduce"`, ...); nodes carry `role` and `label`, edges `op`. A
      node with an `op` of its own shows that, and an edge whose `op` is `"connect"` is a plain arrow. The
      `values` of the first graph are listed.
    Panels stand side by side while they fit a page, else below each other. Cells too large to be laid out in
    some seconds are only named.
    """
    panels = _panels(graphs)
    beside = sum(panel.width + _BETWEEN for panel in panels) <= _SIDE_BY_SIDE
    heading = Heading(title, subtitle)
    if beside:
        inner = sum(p.width for p in panels) + _BETWEEN * max(len(panels) - 1, 0)
        body = max((p.height for p in panels), default=0.0)
    else:
        inner = max(p.width for p in panels)
        body = sum(p.height for p in panels) + _BETWEEN * (len(panels) - 1)
    inner = max(inner, heading.width, 4.5)
    legend = Legend(_keys({panel.name: panel.graph for panel in panels}), inner)
    height = 2 * _MARGIN + heading.height + body + (legend.height + 0.2 if legend.keys else 0.0)
    figure, sheet = page(inner + 2 * _MARGIN, height)
    heading.draw(sheet, _MARGIN, height - _MARGIN)
    x, top = _MARGIN, height - _MARGIN - heading.height
    spare = (inner - sum(p.width for p in panels) - _BETWEEN * (len(panels) - 1)) / max(len(panels), 1)
    for panel in panels:
        width = panel.width + spare if beside else inner
        tall = body if beside else panel.height
        _draw_panel(sheet, panel, (x, top - tall, width, tall))
        x, top = (x + width + _BETWEEN, top) if beside else (x, top - tall - _BETWEEN)
    legend.draw(sheet, _MARGIN, _MARGIN + legend.height)
    return figure


def _keys(graphs: Mapping[str, nx.DiGraph[str]]) -> list[Key]:
    edges = {
        op_kind(op)
        for graph in graphs.values()
        for _, _, op in graph.edges(data="op", default="concat")
        if op != _CONNECT
    }
    nodes = {
        op_kind(data["op"]) for graph in graphs.values() for _, data in graph.nodes(data=True) if "op" in data
    }
    looks = [(kind, look) for kind, look in LOOKS.items() if kind in edges | nodes]
    return [
        Key(look.label, look.color, look.dash, mark="line" if kind in edges else "box")
        for kind, look in looks
    ]


def _panels(graphs: Mapping[str, nx.DiGraph[str]]) -> list[_Panel]:
    """The cells in their order as far as the budget goes; all others in one panel that says so."""
    panels, left_out, spent = [], [], 0
    values = next((graph.graph.get("values") for graph in graphs.values()), None) or {}
    if values:
        panels.append(_listed("values", "values", values))
    for i, (kind, graph) in enumerate(graphs.items()):
        if values and set(_decisions(graph).values()) <= set(values):
            continue
        cost = effort(graph) + EACH
        if spent + cost > BUDGET:
            left_out.append(f"{clean(kind)}: {len(graph):,} nodes, {graph.number_of_edges():,} edges")
        else:
            panels.append(_panel(f"cell{i}", kind, graph))
            spent += cost
    if left_out:
        more = f" and {len(left_out) - 1:,} more" if len(left_out) > 1 else ""
        note = clean(left_out[0] + more, limit=80)
        panels.append(_Panel("large", "too large to draw", nx.DiGraph(), _nothing(), {}, note))
    return panels


def _nothing() -> Layout:
    return arrange(nx.DiGraph(), sizes={}, labels={})


def _listed(name: str, header: str, choices: Mapping[str, str]) -> _Panel:
    """A panel with a table in place of a graph."""
    return _Panel(name, clean(header), nx.DiGraph(), _nothing(), {}, table=Table.of(choices))


def _decisions(graph: nx.DiGraph[str]) -> dict[tuple[str, str], str]:
    return {(a, b): str(name) for a, b, name in graph.edges(data="decision", default="")}


def _is_chain(graph: nx.DiGraph[str]) -> bool:
    """Whether it is one operation after the other, each of another decision."""
    names = set(_decisions(graph).values()) - {""}
    return len(names) == graph.number_of_edges() == len(graph) - 1 and all(d < 2 for _, d in graph.out_degree)


def _panel(name: str, kind: str, graph: nx.DiGraph[str]) -> _Panel:
    labels = {}
    for source, target, op in graph.edges(data="op", default="concat"):
        if op != _CONNECT and op_kind(op) != "concat":
            width, height = text_size(_op_text(op), _LABEL_SIZE)
            labels[source, target] = (width + 0.2, height + 0.11)
    boxes = {node: _box(graph, node) for node in graph}
    layout = arrange(graph, sizes=boxes, labels=labels)
    if layout.width > _SIDE_BY_SIDE and _is_chain(graph):
        return _listed(name, kind, {data["decision"]: data["op"] for _, _, data in graph.edges(data=True)})
    return _Panel(
        name=name,
        header=clean(kind),
        graph=graph,
        layout=layout,
        boxes=boxes,
        note="" if _connected(graph) else EMPTY,
    )


def _box(graph: nx.DiGraph[str], node: str) -> tuple[float, float]:
    width, height = text_size(_node_label(graph, node), _NODE_SIZE, bold=True)
    ports = max(graph.in_degree(node), graph.out_degree(node))
    return max(width + 0.26, 0.46), max(height + 0.24, 0.15 * ports)


def _op_text(op: str) -> str:
    return clean(op) or "?"


def _node_label(graph: nx.DiGraph[str], node: str) -> str:
    data = graph.nodes[node]
    return node_text(str(data.get("op", data.get("label", node)))) or "?"


def _connected(graph: nx.DiGraph[str]) -> bool:
    ends: dict[str, list[str]] = {"input": [], "output": []}
    for node in graph:
        ends.setdefault(role_of(graph, node), []).append(node)
    return any(nx.has_path(graph, a, b) for a, b in itertools.product(ends["input"], ends["output"]))


def _draw_panel(sheet: Axes, panel: _Panel, area: tuple[float, float, float, float]) -> None:
    x, y, width, height = area
    _rounded(sheet, x, y, width, height, face=PANEL, edge="none", radius=0.12, zorder=0)
    top = y + height
    if panel.header:
        write(sheet, x + _PAD, top - 0.3, panel.header, size=13, bold=True, ha="left")
        top -= _HEADER
    if panel.note:
        write(
            sheet, x + _PAD, top - 0.22, panel.note, size=11, color=shade(LOOKS["sep"].color, 0.2), ha="left"
        )
        top -= 0.34
    if panel.table is not None:
        panel.table.draw(sheet, x + _PAD, top - 0.2)
        return
    left = x + (width - panel.layout.width) / 2
    bottom = y + (top - y - panel.layout.height) / 2
    for number, (source, target, op) in enumerate(panel.graph.edges(data="op", default="concat")):
        look = _CONNECTION if op == _CONNECT else LOOKS[op_kind(op)]
        wire = panel.layout.wires[source, target]
        _draw_wire(sheet, wire, look, left, bottom, thin=wire.label is None)
        if wire.label is not None:
            at = (left + wire.label[0], bottom + wire.label[1])
            _draw_label(sheet, _op_text(op), look, at, gid=f"{panel.name}-label{number}")
    for number, (node, (cx, cy)) in enumerate(panel.layout.nodes.items()):
        _draw_node(sheet, panel, node, (left + cx, bottom + cy), gid=f"{panel.name}-node{number}")


def _draw_wire(sheet: Axes, wire: Wire, look: Look, left: float, bottom: float, *, thin: bool) -> None:
    runs = [(left + a, left + b, bottom + y) for a, b, y in wire.runs]
    _, tip, y = runs[-1]
    length, half = (0.11, 0.045) if thin else (0.15, 0.062)
    runs[-1] = (runs[-1][0], tip - length + 0.02, y)
    path = _curve(runs)
    width = 1.3 if thin else 2.2
    order = 1 if thin else 2
    # A casing in the panel's colour lets the upper of two crossing wires pass clearly over the lower.
    casing = PathPatch(path, facecolor="none", edgecolor=PANEL, linewidth=width + 3, zorder=order)
    line = PathPatch(path, facecolor="none", edgecolor=look.color, linewidth=width, zorder=order + 0.1)
    line.set_capstyle("butt")
    set_dash(line, look.dash)
    head = Polygon([(tip, y), (tip - length, y + half), (tip - length, y - half)], closed=True, zorder=4)
    head.set(facecolor=look.color, edgecolor="none")
    for patch in (casing, line, head):
        sheet.add_patch(patch)


def _curve(runs: list[Run]) -> Path:
    start, end, y = runs[0]
    points, codes = [(start, y), (end, y)], [Path.MOVETO, Path.LINETO]
    for (_, x0, y0), (x1, x2, y1) in itertools.pairwise(runs):
        middle = (x0 + x1) / 2
        points += [(middle, y0), (middle, y1), (x1, y1), (x2, y1)]
        codes += [Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
    return Path(points, codes)


def _draw_label(sheet: Axes, text: str, look: Look, at: tuple[float, float], *, gid: str) -> None:
    width, height = text_size(text, _LABEL_SIZE)
    box = (at[0] - width / 2 - 0.09, at[1] - height / 2 - 0.045, width + 0.18, height + 0.09)
    pill = _rounded(sheet, *box, face=tint(look.color, 0.9), edge=look.color, radius=0.07, zorder=5)
    pill.set_gid(gid)
    write(sheet, *at, text, size=_LABEL_SIZE, color=shade(look.color, 0.35)).set_gid(f"{gid}-text")


def _draw_node(sheet: Axes, panel: _Panel, node: str, at: tuple[float, float], *, gid: str) -> None:
    width, height = panel.boxes[node]
    face = _ROLE_COLORS.get(role_of(panel.graph, node), _ROLE_COLORS["node"])
    unused = panel.graph.degree(node) == 0
    ink = INK if face == PAPER else PAPER
    corner = (at[0] - width / 2, at[1] - height / 2)
    edge = HAIR if unused else INK if face == PAPER else face
    if unused:
        face, ink = PANEL, MUTED
    elif "op" in panel.graph.nodes[node]:
        look = LOOKS[op_kind(str(panel.graph.nodes[node]["op"]))]
        face, edge, ink = tint(look.color, 0.9), look.color, shade(look.color, 0.35)
    _rounded(sheet, *corner, width, height, face=face, edge=edge, radius=0.1, zorder=6).set_gid(gid)
    text = _node_label(panel.graph, node)
    write(sheet, *at, text, size=_NODE_SIZE, bold=True, color=ink).set_gid(f"{gid}-text")


def _rounded(
    sheet: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    face: str,
    edge: str,
    radius: float,
    zorder: float,
) -> FancyBboxPatch:
    box = FancyBboxPatch((x, y), width, height, boxstyle=f"round,pad=0,rounding_size={radius}", zorder=zorder)
    box.set(facecolor=face, edgecolor=edge, linewidth=1.2)
    sheet.add_patch(box)
    return box
