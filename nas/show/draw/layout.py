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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
_PORT_STEP, ARROW = 0.13, 0.19
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

    width: float
    height: float
    nodes: Mapping[str, Point]
    wires: Mapping[Edge, Wire]


@dataclass(frozen=True, slots=True)
class Grid:
    """Nodes and edge slots as numbered vertices: column, size and clearance of each; each edge's chain."""

    columns: list[int]
    sizes: list[Size]
    gaps: list[float]
    names: dict[str, int]
    chains: dict[Edge, list[int]]
    labelled: dict[Edge, int]

    def add(self, column: int, size: Size, gap: float) -> int:
        """Adds a vertex and returns its number."""
        self.columns.append(column)
        self.sizes.append(size)
        self.gaps.append(gap)
        return len(self.columns) - 1

    def steps(self) -> list[tuple[int, int]]:
        """All pairs of vertices that a wire joins."""
        return [step for chain in self.chains.values() for step in itertools.pairwise(chain)]

    def neighbours(self) -> tuple[list[list[int]], list[list[int]]]:
        """For each vertex, those that it touches in the column before and in the column after."""
        before: list[list[int]] = [[] for _ in self.columns]
        after: list[list[int]] = [[] for _ in self.columns]
        for a, b in self.steps():
            after[a].append(b)
            before[b].append(a)
        return before, after


def arrange(
    graph: nx.DiGraph[str],
    *,
    sizes: Mapping[str, Size],
    labels: Mapping[Edge, Size],
    width: float = math.inf,
) -> Layout:
    """Lays the graph out from left to right; the same graph always gives the same layout.

    graph: a DAG whose nodes may carry `role`; nodes without predecessors other than inputs start in column 1
        where there are inputs.
    sizes: width and height of every node box; labels: of every edge label, only for edges that have one.
    width: what is wider is folded into rows of about this width, in which data flow to the right and to the
        left in turn. A graph that is folded has no labels.
    """
    if not graph:
        return Layout(0.0, 0.0, {}, {})
    grid = expand(graph, sizes=sizes, labels=labels)
    found = list(orders(grid))
    fewest = min(crossed for crossed, _ in found)
    finalists = [order for crossed, order in found if crossed == fewest]
    distinct = [order for i, order in enumerate(finalists) if order not in finalists[:i]]
    _, heights = min(_heights(grid, order) for order in distinct)
    inputs = [grid.names[node] for node in graph if role_of(graph, node) == "input"]
    if len(inputs) > 1 and heights[inputs[0]] < heights[inputs[-1]]:
        heights = [-height for height in heights]  # the first input is the upper one
    return _route(grid, heights, width)


def role_of(graph: nx.DiGraph[str], node: str) -> str:
    """The node's part in the cell: `"input"`, `"node"` or `"output"`."""
    return str(graph.nodes[node].get("role", "node"))


def layers(graph: nx.DiGraph[str]) -> dict[str, int]:
    """The longest-path layer of every node, from 0: inputs in the first, outputs alone in the last."""
    roles = {node: role_of(graph, node) for node in graph}
    rank: dict[str, int] = {}
    for node in nx.topological_sort(graph):
        earlier = max((rank[p] for p in graph.predecessors(node)), default=0)
        rank[node] = 0 if roles[node] == "input" else earlier + 1
    last = max((rank[node] for node in rank if roles[node] != "output"), default=-1) + 1
    rank |= {node: last for node in rank if roles[node] == "output"}
    first = min(rank.values(), default=0)
    return {node: rank[node] - first for node in graph}


def effort(graph: nx.DiGraph[str]) -> int:
    """How much work a layout is: nodes and edge slots, and one for every 100 pairs of wires side by side."""
    rank = layers(graph)
    starts = [0] * (max(rank.values(), default=0) + 1)
    for source, target in graph.edges:
        starts[rank[source]] += 1
        starts[rank[target]] -= 1
    wires = list(itertools.accumulate(starts))
    return len(graph) + 2 * sum(wires) - graph.number_of_edges() + sum(count**2 for count in wires) // 100


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """The places nearest to `wanted` in the least-squares sense, in its order, at least `gap` apart.

    All lie in [low, high], which must have room for them. Without the gaps this is isotonic regression.
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    flat = isotonic_regression(np.asarray(wanted)[order] - steps).x
    places = np.empty(len(order))
    places[order] = np.clip(flat, low, high - steps[-1]) + steps
    return [float(place) for place in places]


def expand(graph: nx.DiGraph[str], *, sizes: Mapping[str, Size], labels: Mapping[Edge, Size]) -> Grid:
    """The slots of a graph, given the sizes of its node boxes and of its edge labels."""
    rank = layers(graph)
    grid = Grid([], [], [], {}, {}, {})
    for node in graph:
        grid.names[node] = grid.add(2 * rank[node], sizes[node], _NODE_GAP)
    load: dict[int, float] = {}
    for edge in sorted(graph.edges, key=lambda e: (rank[e[1]] - rank[e[0]], rank[e[0]])):
        source, target = edge
        between = range(2 * rank[source] + 1, 2 * rank[target])
        # The emptiest column takes the label; among equals the one nearest to the target.
        home = min(between[::2], key=lambda c: (load.get(c, 0.0), -c)) if edge in labels else -1
        slots = [
            grid.add(c, labels[edge], _LABEL_GAP) if c == home else grid.add(c, (0.0, 0.0), _SLOT_GAP)
            for c in between
        ]
        if edge in labels:
            load[home] = load.get(home, 0.0) + labels[edge][1]
            grid.labelled[edge] = slots[home - between.start]
        grid.chains[edge] = [grid.names[source], *slots, grid.names[target]]
    return grid


def orders(grid: Grid) -> Iterator[tuple[int, Order]]:
    """Orders of the columns' vertices with few crossings, and how many, from several fixed starts."""
    rng = np.random.default_rng(0)
    before, after = grid.neighbours()
    count = max(grid.columns, default=0) + 1
    there = [(column, before, column - 1) for column in range(1, count)]
    back = [(column, after, column + 1) for column in reversed(range(count - 1))]
    for restart in range(_RESTARTS):
        vertices = list(range(len(grid.columns)))
        if restart:
            vertices = rng.permutation(len(vertices)).tolist()
        order: Order = [[] for _ in range(count)]
        for v in vertices:
            order[grid.columns[v]].append(v)
        best, fewest = [list(column) for column in order], crossings(grid, order)
        for _ in range(_SWEEPS):
            for column, links, fixed in there + back:
                _sort_column(order, column, links, fixed)
            crossed = crossings(grid, order)
            if crossed < fewest:
                best, fewest = [list(column) for column in order], crossed
            if not fewest:
                break
        yield fewest, best


def _sort_column(order: Order, column: int, links: Sequence[Sequence[int]], fixed: int) -> None:
    """The barycentre rule of Sugiyama et al. (1981): each vertex moves to the mean of its neighbours."""
    place = {v: i for i, v in enumerate(order[fixed])}
    scale = len(order[fixed]) / max(1, len(order[column]))
    wish = {
        v: sum(place[n] for n in links[v]) / len(links[v]) if links[v] else i * scale
        for i, v in enumerate(order[column])
    }
    order[column].sort(key=wish.__getitem__)


def crossings(grid: Grid, order: Order) -> int:
    """How many pairs of wires cross between neighbouring columns."""
    place = {v: i for column in order for i, v in enumerate(column)}
    steps: dict[int, list[tuple[int, int]]] = {}
    for a, b in grid.steps():
        steps.setdefault(grid.columns[a], []).append((place[a], place[b]))
    total = 0
    for pairs in steps.values():
        ends = np.asarray(pairs)
        signs = np.subtract.outer(ends[:, 0], ends[:, 0]) * np.subtract.outer(ends[:, 1], ends[:, 1])
        total += int((signs < 0).sum()) // 2
    return total


def _heights(grid: Grid, order: Order) -> tuple[float, list[float]]:
    """How much all wires rise and fall, and the heights of the vertices with which that is least.

    A linear program as in Gansner et al. (1993), section 4.2: the weighted sum of |y_a - y_b| over all wires'
    steps is least, while neighbours in a column keep their clearance. Of all solutions it is the mean of
    the highest and the lowest, which is one too: what could be anywhere is in the middle.
    """
    steps, nodes = grid.steps(), set(grid.names.values())
    stacked = [pair for column in order for pair in itertools.pairwise(column)]
    rooms = [(grid.sizes[a][1] + grid.sizes[b][1]) / 2 + max(grid.gaps[a], grid.gaps[b]) for a, b in stacked]
    # Variables: the heights, then the size of each step. Rows: twice each step, then each neighbourhood.
    count, rises = len(grid.columns), len(steps)
    entries = [
        (2 * i + (sign < 0), column, factor)
        for i, (a, b) in enumerate(steps)
        for sign in (1, -1)
        for column, factor in ((a, sign), (b, -sign), (count + i, -1))
    ]
    entries += [(2 * rises + i, v, sign) for i, (a, b) in enumerate(stacked) for v, sign in ((a, 1), (b, -1))]
    rows, columns, factors = np.asarray(entries, dtype=np.int64).reshape(-1, 3).T
    shape = 2 * rises + len(stacked), count + rises
    limits = sparse.coo_array((factors.astype(np.float64), (rows, columns)), shape=shape)
    bounds = [0.0] * (2 * rises) + [-room for room in rooms]
    stiffness = [1.0 if a in nodes or b in nodes else 4.0 for a, b in steps]
    tallest = 1.0 + 2 * sum(rooms)
    ends = [(0.0, tallest)] * count + [(0.0, None)] * rises
    found = [
        linprog([tilt] * count + stiffness, A_ub=limits, b_ub=bounds, bounds=ends).x[:count]
        for tilt in (1e-3, -1e-3)
    ]
    heights = [float(height) for height in np.mean(found, axis=0)]
    return sum(abs(heights[a] - heights[b]) for a, b in steps), heights


def _route(grid: Grid, heights: Sequence[float], width: float) -> Layout:
    floor = min((y - size[1] / 2 for y, size in zip(heights, grid.sizes, strict=True)), default=0.0)
    ys = [y - floor for y in heights]
    height = max((y + size[1] / 2 for y, size in zip(ys, grid.sizes, strict=True)), default=0.0)
    spans = _spans(grid, ys)
    cuts: Sequence[int] = []
    if spans and spans[-1][1] > width:
        layer_count = len(spans) // 2 + 1
        most = max(1, int(layer_count * width / spans[-1][1]))
        each = math.ceil(layer_count / math.ceil(layer_count / most))
        cuts = range(2 * each - 1, len(spans), 2 * each)
        spans = _spans(grid, ys, cuts)
    nodes = {name: (sum(spans[grid.columns[v]]) / 2, ys[v]) for name, v in grid.names.items()}
    layout = Layout(max((x for _, x in spans), default=0.0), height, nodes, _wires(grid, ys, spans))
    return _fold(layout, [sum(spans[column]) / 2 for column in cuts]) if cuts else layout


def _spans(grid: Grid, ys: Sequence[float], cuts: Collection[int] = ()) -> list[tuple[float, float]]:
    """Left and right end of every column; the steeper the steps between two columns, the wider the gap.

    cuts: columns in which the layout is folded.
    """
    count = max(grid.columns, default=-1) + 1
    widths = [2 * _TURN if column in cuts else 0.0 for column in range(count)]
    rises = [0.0] * count
    for column, (width, _) in zip(grid.columns, grid.sizes, strict=True):
        widths[column] = max(widths[column], width)
    for a, b in grid.steps():
        rises[grid.columns[a]] = max(rises[grid.columns[a]], abs(ys[a] - ys[b]))
    spans, x = [], 0.0
    for column in range(count):
        spans.append((x, x + widths[column]))
        x += widths[column] + 0.16 + min(0.34 * rises[column], 0.75) + ARROW * (column % 2)
    return spans


def _wires(grid: Grid, ys: Sequence[float], spans: Sequence[tuple[float, float]]) -> dict[Edge, Wire]:
    leave = _ports(grid, ys, end=0)
    arrive = _ports(grid, ys, end=-1)
    wires = {}
    for edge, chain in grid.chains.items():
        first, last = chain[0], chain[-1]
        left, right = spans[grid.columns[first]]
        start = (left + right + grid.sizes[first][0]) / 2
        tip = (sum(spans[grid.columns[last]]) - grid.sizes[last][0]) / 2
        runs = [(start, right, leave[edge])]
        # A column without labels has no width and holds a wire to nothing.
        runs += [
            (left, right, ys[v])
            for v in chain[1:-1]
            for left, right in [spans[grid.columns[v]]]
            if right > left
        ]
        runs.append((spans[grid.columns[last]][0] - ARROW, tip, arrive[edge]))
        slot = grid.labelled.get(edge)
        label = None if slot is None else (sum(spans[grid.columns[slot]]) / 2, ys[slot])
        wires[edge] = Wire(tuple(runs), label)
    return wires


def _ports(grid: Grid, ys: Sequence[float], *, end: int) -> dict[Edge, float]:
    """Where each edge leaves (`end` 0) or enters (`end` -1) its node: near the height of its next slot."""
    groups: dict[int, list[Edge]] = {}
    for edge, chain in grid.chains.items():
        groups.setdefault(chain[end], []).append(edge)
    ports: dict[Edge, float] = {}
    for vertex, edges in groups.items():
        half = 0.35 * grid.sizes[vertex][1]
        wanted = [ys[grid.chains[edge][1 if end == 0 else -2]] for edge in edges]
        step = min(_PORT_STEP, 2 * half / len(edges))
        places = spread(wanted, gap=step, low=ys[vertex] - half, high=ys[vertex] + half)
        ports |= zip(edges, places, strict=True)
    return ports


def _fold(layout: Layout, cuts: Sequence[float]) -> Layout:
    """Breaks a layout at the places `cuts` into rows, every other one turned by half, like a ribbon."""
    ends = [0.0, *cuts, layout.width]
    begins = [0.0]  # where each row begins on the page
    for row, (start, end) in enumerate(itertools.pairwise(ends)):
        begins.append(begins[-1] + (start - end if row % 2 else end - start))
    pitch = layout.height + _ROW_GAP
    margin = 0.75 * _bulge(pitch + layout.height)
    left = min(begins) - margin

    def place(row: int, x: float, y: float) -> Point:
        along, up = x - ends[row], (len(cuts) - row) * pitch
        if row % 2:
            return begins[row] - left - along, up + layout.height - y
        return begins[row] - left + along, up + y

    def moved(point: Point) -> Point:
        return place(bisect(cuts, point[0]), *point)

    def runs(wire: Wire) -> Iterator[Run]:
        for start, end, y in wire.runs:
            parts = [start, *(cut for cut in cuts if start < cut < end), end]
            for a, b in itertools.pairwise(parts):
                row = bisect(cuts, (a + b) / 2)
                (x0, height), (x1, _) = place(row, a, y), place(row, b, y)
                yield x0, x1, height

    return Layout(
        max(begins) - left + margin,
        len(cuts) * pitch + layout.height,
        {name: moved(centre) for name, centre in layout.nodes.items()},
        {
            edge: Wire(tuple(runs(wire)), wire.label and moved(wire.label))
            for edge, wire in layout.wires.items()
        },
    )
