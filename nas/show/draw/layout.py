"""Layered layout of a small labelled DAG, in which labels cannot overlap by construction.

Every edge is cut into a chain of slots, one per column between its ends, and its label takes one of these
slots at its full size, as in Gansner et al., "A Technique for Drawing Directed Graphs" (1993), section 5.3.
The slots of a column are ordered to reduce crossings and then given heights with a minimum separation; an
edge runs level through a column and bends only between columns. So no edge touches a node or a foreign label.
A layout that is wider than a page, such as that of a whole network, is folded into rows.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
from scipy import sparse
from scipy.optimize import isotonic_regression, linprog

Size = tuple[float, float]
Point = tuple[float, float]
Edge = tuple[str, str]
Order = list[list[int]]
Run = tuple[float, float, float]

_SLOT_GAP, _LABEL_GAP, _NODE_GAP = 0.15, 0.11, 0.24
_PORT_STEP, _ARROW = 0.13, 0.19
_RESTARTS, _SWEEPS = 12, 10
_ROW_GAP, _TURN = 0.45, 0.12
"""Between rows, and from the end of a row to where its wires turn; all lengths are inches."""


@dataclass(frozen=True, slots=True)
class Wire:
    """The route of one edge: level runs `(x from, x to, y)` in inches, joined by curves."""

    runs: tuple[Run, ...]
    label: Point | None

    def points(self) -> list[Point]:
        """Both ends of the first run, then two control points and both ends for each of the others."""
        start, end, y = self.runs[0]
        points = [(start, y), (end, y)]
        for (before, x0, y0), (x1, x2, y1) in itertools.pairwise(self.runs):
            middle = (x0 + x1) / 2
            if math.isclose(x0, x1, abs_tol=1e-6):  # the wire turns into the next row
                middle += math.copysign(_bulge(y0 - y1), x0 - before)
            points += [(middle, y0), (middle, y1), (x1, y1), (x2, y1)]
        return points


def _bulge(drop: float) -> float:
    """How far the control points of a turn by so many inches lie outside; the curve goes 3/4 as far."""
    return 0.25 + 0.2 * abs(drop)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything goes, in inches from the lower left corner; `nodes` holds centres."""

    width: float = 0.0
    height: float = 0.0
    nodes: Mapping[str, Point] = field(default_factory=dict)
    wires: Mapping[Edge, Wire] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Grid:
    """The nodes of a graph, which come first, and the slots of its edges as numbered vertices.

    columns, sizes, gaps: of each vertex, the last is its clearance. chains: the vertices of each edge.
    steps: the vertices as a graph, whose edges join neighbouring columns.
    """

    columns: list[int]
    sizes: list[Size]
    gaps: list[float]
    chains: dict[Edge, list[int]]
    steps: nx.DiGraph[int]

    @property
    def width(self) -> int:
        """The number of columns."""
        return max(self.columns) + 1


def arrange(
    graph: nx.DiGraph[str],
    *,
    sizes: Mapping[str, Size],
    labels: Mapping[Edge, Size],
    width: float = math.inf,
) -> Layout:
    """Lays the graph out from left to right; the same graph always gives the same layout.

    graph: a DAG whose nodes may carry `role`; the first input is the upper one.
    sizes: width and height of every node box; labels: of every edge label, only for edges that have one.
    width: what is wider is folded into rows of about this width, in which data flow to the right and to the
        left in turn. A graph that is folded has no labels.
    """
    if not graph:
        return Layout()
    grid = _expand(graph, sizes, labels)
    found = list(_orders(grid))
    fewest = min(crossings for crossings, _ in found)
    finalists = {str(order): order for crossings, order in found if crossings == fewest}
    _, heights = min(_heights(grid, order, len(graph)) for order in finalists.values())
    inputs = [v for v, node in enumerate(graph) if role_of(graph, node) == "input"]
    if len(inputs) > 1 and heights[inputs[0]] < heights[inputs[-1]]:
        heights = [-height for height in heights]
    return _route(grid, list(graph), heights, width)


def role_of(graph: nx.DiGraph[str], node: str) -> str:
    """The node's part in the cell: `"input"`, `"node"` or `"output"`."""
    return str(graph.nodes[node].get("role", "node"))


def effort(graph: nx.DiGraph[str]) -> int:
    """How much work a layout is: the number of nodes and slots."""
    rank = _ranks(graph)
    return len(graph) + sum(2 * (rank[b] - rank[a]) - 1 for a, b in graph.edges)


def _ranks(graph: nx.DiGraph[str]) -> dict[str, int]:
    """The longest-path layer of every node, from 0; outputs are alone in the last."""
    rank = {node: i for i, nodes in enumerate(nx.topological_generations(graph)) for node in nodes}
    outputs = [node for node in graph if role_of(graph, node) == "output"]
    last = max((rank[node] for node in rank if node not in outputs), default=-1) + 1
    return rank | dict.fromkeys(outputs, last)


def _expand(graph: nx.DiGraph[str], sizes: Mapping[str, Size], labels: Mapping[Edge, Size]) -> _Grid:
    rank, number = _ranks(graph), {node: v for v, node in enumerate(graph)}
    columns, boxes = [2 * rank[node] for node in graph], [sizes[node] for node in graph]
    gaps, chains = [_NODE_GAP] * len(graph), dict[Edge, list[int]]()
    load: dict[int, float] = defaultdict(float)
    for edge in sorted(graph.edges, key=lambda e: (rank[e[1]] - rank[e[0]], rank[e[0]])):
        between = range(2 * rank[edge[0]] + 1, 2 * rank[edge[1]])
        # The emptiest column takes the label; among equals the one nearest to the target.
        home = min(between[::2], key=lambda c: (load[c], -c)) if edge in labels else -1
        load[home] += labels[edge][1] if edge in labels else 0.0
        first = len(columns)
        chains[edge] = [number[edge[0]], *range(first, first + len(between)), number[edge[1]]]
        columns += between
        boxes += [labels[edge] if c == home else (0.0, 0.0) for c in between]
        gaps += [_LABEL_GAP if c == home else _SLOT_GAP for c in between]
    steps: nx.DiGraph[int] = nx.DiGraph()
    steps.add_nodes_from(range(len(columns)))
    steps.add_edges_from(step for chain in chains.values() for step in itertools.pairwise(chain))
    return _Grid(columns, boxes, gaps, chains, steps)


def _orders(grid: _Grid) -> Iterator[tuple[int, Order]]:
    """Orders of the columns' vertices with few crossings, and how many, from several fixed starts."""
    rng = np.random.default_rng(0)
    there, back = range(1, grid.width), reversed(range(grid.width - 1))
    sweep = [*((c, c - 1, grid.steps.pred) for c in there), *((c, c + 1, grid.steps.succ) for c in back)]
    for restart in range(_RESTARTS):
        order: Order = [[] for _ in range(grid.width)]
        for v in rng.permutation(len(grid.columns)).tolist() if restart else range(len(grid.columns)):
            order[grid.columns[v]].append(v)
        found = [(_crossings(grid, order), [list(column) for column in order])]
        while found[-1][0] and len(found) <= _SWEEPS:
            for column, fixed, links in sweep:
                _sort_column(order, column, fixed, links)
            found.append((_crossings(grid, order), [list(column) for column in order]))
        yield min(found)


def _sort_column(order: Order, column: int, fixed: int, links: Mapping[int, Collection[int]]) -> None:
    """The barycentre rule of Sugiyama et al. (1981): each vertex moves to the mean of its neighbours."""
    place = {v: i for i, v in enumerate(order[fixed])}
    scale = len(order[fixed]) / max(1, len(order[column]))
    wish = {
        v: sum(place[n] for n in links[v]) / len(links[v]) if links[v] else i * scale
        for i, v in enumerate(order[column])
    }
    order[column].sort(key=wish.__getitem__)


def _crossings(grid: _Grid, order: Order) -> int:
    """How many pairs of wires cross between neighbouring columns."""
    place = {v: i for column in order for i, v in enumerate(column)}
    total = 0
    for column in order:
        ends = np.asarray([(place[a], place[b]) for a in column for b in grid.steps.succ[a]]).reshape(-1, 2)
        signs = np.subtract.outer(ends[:, 0], ends[:, 0]) * np.subtract.outer(ends[:, 1], ends[:, 1])
        total += int((signs < 0).sum()) // 2
    return total


def _heights(grid: _Grid, order: Order, nodes: int) -> tuple[float, list[float]]:
    """How much all wires rise and fall, and the heights of the vertices with which that is least.

    A linear program as in Gansner et al. (1993), section 4.2: the weighted sum of |y_a - y_b| over all wires'
    steps is least, while neighbours in a column keep their clearance. Of all solutions it is the mean of
    the highest and the lowest, which is one too: what could be anywhere is in the middle.
    """
    steps, count = list(grid.steps.edges), len(grid.columns)
    stacked = [pair for column in order for pair in itertools.pairwise(column)]
    rooms = [(grid.sizes[a][1] + grid.sizes[b][1]) / 2 + max(grid.gaps[a], grid.gaps[b]) for a, b in stacked]
    rise, apart = (
        nx.incidence_matrix(grid.steps, range(count), pairs, oriented=True).T for pairs in (steps, stacked)
    )
    # Variables: the heights, then the size of each step, which is at least its rise and its fall.
    size = sparse.eye_array(len(steps))
    limits = sparse.vstack(
        [
            sparse.hstack([rise, -size]),
            sparse.hstack([-rise, -size]),
            sparse.hstack([-apart, sparse.coo_array((len(stacked), len(steps)))]),
        ]
    )
    bounds = [0.0] * (2 * len(steps)) + [-room for room in rooms]
    stiffness = [1.0 if min(step) < nodes else 4.0 for step in steps]
    ends = [(0.0, 1.0 + 2 * sum(rooms))] * count + [(0.0, None)] * len(steps)
    found = [
        linprog([tilt] * count + stiffness, A_ub=limits, b_ub=bounds, bounds=ends).x[:count]
        for tilt in (1e-3, -1e-3)
    ]
    heights = [float(height) for height in np.mean(found, axis=0)]
    return sum(abs(heights[a] - heights[b]) for a, b in steps), heights


def _route(grid: _Grid, nodes: Sequence[str], heights: Sequence[float], width: float) -> Layout:
    """The layout with these heights of the vertices, from 0 on."""
    halves = [size[1] / 2 for size in grid.sizes]
    floor = min(y - half for y, half in zip(heights, halves, strict=True))
    ys = [y - floor for y in heights]
    spans, cuts = _spans(grid, ys), range(0)
    if spans[-1][1] > width:
        layers = len(spans) // 2 + 1
        most = max(1, int(layers * width / spans[-1][1]))
        each = math.ceil(layers / math.ceil(layers / most))
        cuts = range(2 * each - 1, len(spans), 2 * each)
        spans = _spans(grid, ys, cuts)
    centres = {name: (sum(spans[grid.columns[v]]) / 2, ys[v]) for v, name in enumerate(nodes)}
    height = max(y + half for y, half in zip(ys, halves, strict=True))
    layout = Layout(max(x for _, x in spans), height, centres, _wires(grid, ys, spans))
    return _fold(layout, [sum(spans[column]) / 2 for column in cuts]) if cuts else layout


def _spans(grid: _Grid, ys: Sequence[float], cuts: Collection[int] = ()) -> list[tuple[float, float]]:
    """Left and right end of every column; the steeper the steps between two columns, the wider the gap.

    cuts: columns in which the layout is folded.
    """
    widths = [2 * _TURN if column in cuts else 0.0 for column in range(grid.width)]
    rises = [0.0] * grid.width
    for column, (width, _) in zip(grid.columns, grid.sizes, strict=True):
        widths[column] = max(widths[column], width)
    for a, b in grid.steps.edges:
        rises[grid.columns[a]] = max(rises[grid.columns[a]], abs(ys[a] - ys[b]))
    gaps = [0.16 + min(0.34 * rise, 0.75) + _ARROW * (c % 2) for c, rise in enumerate(rises)]
    starts = [0.0, *itertools.accumulate(w + gap for w, gap in zip(widths, gaps, strict=True))]
    return [(x, x + width) for x, width in zip(starts, widths, strict=False)]


def _wires(grid: _Grid, ys: Sequence[float], spans: Sequence[tuple[float, float]]) -> dict[Edge, Wire]:
    leave, arrive = _ports(grid, ys, end=0), _ports(grid, ys, end=-1)
    wires = {}
    for edge, (first, *between, last) in grid.chains.items():
        (left, right), target = spans[grid.columns[first]], spans[grid.columns[last]]
        start, tip = (left + right + grid.sizes[first][0]) / 2, (sum(target) - grid.sizes[last][0]) / 2
        # A column without labels has no width and holds a wire to nothing.
        level = [(*spans[grid.columns[v]], ys[v]) for v in between]
        runs = [run for run in level if run[1] > run[0]]
        label = next(((sum(spans[grid.columns[v]]) / 2, ys[v]) for v in between if grid.sizes[v][1]), None)
        ends = (start, right, leave[edge]), (target[0] - _ARROW, tip, arrive[edge])
        wires[edge] = Wire((ends[0], *runs, ends[1]), label)
    return wires


def _ports(grid: _Grid, ys: Sequence[float], *, end: int) -> dict[Edge, float]:
    """Where each edge leaves (`end` 0) or enters (`end` -1) its node: near the height of its next slot.

    These are the nearest places in the least-squares sense that keep the order and are apart: without the
    gaps, isotonic regression.
    """
    groups: dict[int, list[tuple[float, Edge]]] = defaultdict(list)
    for edge, chain in grid.chains.items():
        groups[chain[end]].append((ys[chain[1 if end == 0 else -2]], edge))
    ports: dict[Edge, float] = {}
    for vertex, members in groups.items():
        wanted, edges = zip(*sorted(members, key=lambda member: member[0]), strict=True)
        half = 0.35 * grid.sizes[vertex][1]
        steps = min(_PORT_STEP, 2 * half / len(edges)) * np.arange(len(edges))
        flat = isotonic_regression(np.asarray(wanted) - steps).x
        places = np.clip(flat, ys[vertex] - half, ys[vertex] + half - steps[-1]) + steps
        ports |= zip(edges, places.tolist(), strict=True)
    return ports


def _fold(layout: Layout, cuts: Sequence[float]) -> Layout:
    """Breaks a layout at the places `cuts` into rows, every other one turned by half, like a ribbon."""
    ends = [0.0, *cuts, layout.width]
    lengths = [b - a for a, b in itertools.pairwise(ends)]
    # Where each row begins on the page: where the one before it ended.
    begins = [0.0, *itertools.accumulate(-x if row % 2 else x for row, x in enumerate(lengths))]
    pitch = layout.height + _ROW_GAP
    margin = 0.75 * _bulge(pitch + layout.height)
    left = min(begins) - margin

    def place(row: int, x: float, y: float) -> Point:
        along, up = x - ends[row], (len(cuts) - row) * pitch
        if row % 2:
            return begins[row] - left - along, up + layout.height - y
        return begins[row] - left + along, up + y

    def runs(wire: Wire) -> Iterator[Run]:
        for start, end, y in wire.runs:
            for a, b in itertools.pairwise([start, *(cut for cut in cuts if start < cut < end), end]):
                row = bisect(cuts, (a + b) / 2)
                (x0, height), (x1, _) = place(row, a, y), place(row, b, y)
                yield x0, x1, height

    return Layout(
        max(begins) - left + margin,
        len(cuts) * pitch + layout.height,
        {name: place(bisect(cuts, x), x, y) for name, (x, y) in layout.nodes.items()},
        {edge: Wire(tuple(runs(wire)), None) for edge, wire in layout.wires.items()},
    )
