"""Layered layout of a small labelled DAG, in which labels cannot overlap by construction.

Every edge is cut into a chain of slots, one per column between its ends, and its label takes one of these
slots at its full size, as in Gansner et al., "A Technique for Drawing Directed Graphs" (1993), section 5.3.
The slots of a column are ordered to reduce crossings and then given heights with a minimum separation; an
edge runs level through a column and bends only between columns. So no edge touches a node or a foreign label.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

Size = tuple[float, float]
Edge = tuple[str, str]
Order = list[list[int]]

_SLOT_GAP, _LABEL_GAP, _NODE_GAP = 0.15, 0.11, 0.24
_RESTARTS, _SWEEPS = 6, 10


@dataclass(frozen=True, slots=True)
class Grid:
    """Nodes and edge slots as numbered vertices: column, size and clearance of each; each edge's chain."""

    columns: list[int]
    sizes: list[Size]
    gaps: list[float]
    names: dict[str, int]
    chains: dict[Edge, list[int]]
    labelled: dict[Edge, int]

    def neighbours(self) -> tuple[list[list[int]], list[list[int]]]:
        """For each vertex, those that it touches in the column before and in the column after."""
        before: list[list[int]] = [[] for _ in self.columns]
        after: list[list[int]] = [[] for _ in self.columns]
        for chain in self.chains.values():
            for a, b in itertools.pairwise(chain):
                after[a].append(b)
                before[b].append(a)
        return before, after


def role_of(graph: nx.DiGraph[str], node: str) -> str:
    """The node's part in the cell: `"input"`, `"node"` or `"output"`."""
    return str(graph.nodes[node].get("role", "node"))


def layers(graph: nx.DiGraph[str]) -> dict[str, int]:
    """The longest-path layer of every node: inputs in 0, outputs alone in the last."""
    roles = {node: role_of(graph, node) for node in graph}
    rank: dict[str, int] = {}
    for node in nx.topological_sort(graph):
        earlier = max((rank[p] for p in graph.predecessors(node)), default=0)
        rank[node] = 0 if roles[node] == "input" else earlier + 1
    last = max((rank[node] for node in rank if roles[node] != "output"), default=-1) + 1
    return {node: last if roles[node] == "output" else rank[node] for node in graph}


def expand(graph: nx.DiGraph[str], *, sizes: Mapping[str, Size], labels: Mapping[Edge, Size]) -> Grid:
    """The slots of a graph, given the sizes of its node boxes and of its edge labels."""
    rank = layers(graph)
    grid = Grid([], [], [], {}, {}, {})
    for node in graph:
        grid.names[node] = _add(grid, 2 * rank[node], sizes[node], _NODE_GAP)
    load: dict[int, float] = {}
    for edge in sorted(graph.edges, key=lambda e: (rank[e[1]] - rank[e[0]], rank[e[0]])):
        source, target = edge
        between = range(2 * rank[source] + 1, 2 * rank[target])
        # The emptiest column takes the label; among equals the one nearest to the target.
        home = min(between[::2], key=lambda c: (load.get(c, 0.0), -c)) if edge in labels else -1
        slots = [
            _add(grid, c, labels[edge], _LABEL_GAP) if c == home else _add(grid, c, (0.0, 0.0), _SLOT_GAP)
            for c in between
        ]
        if edge in labels:
            load[home] = load.get(home, 0.0) + labels[edge][1]
            grid.labelled[edge] = slots[home - between.start]
        grid.chains[edge] = [grid.names[source], *slots, grid.names[target]]
    return grid


def _add(grid: Grid, column: int, size: Size, gap: float) -> int:
    grid.columns.append(column)
    grid.sizes.append(size)
    grid.gaps.append(gap)
    return len(grid.columns) - 1


def orders(grid: Grid) -> Iterator[Order]:
    """Candidate orders of the columns' vertices, from several fixed starts."""
    rng = np.random.default_rng(0)
    before, after = grid.neighbours()
    count = max(grid.columns, default=0) + 1
    for restart in range(_RESTARTS):
        vertices = list(range(len(grid.columns)))
        if restart:
            vertices = rng.permutation(len(vertices)).tolist()
        order: Order = [[v for v in vertices if grid.columns[v] == c] for c in range(count)]
        best, fewest = order, crossings(grid, order)
        for _ in range(_SWEEPS):
            for column in range(1, count):
                _sort_column(order, column, before, column - 1)
            for column in reversed(range(count - 1)):
                _sort_column(order, column, after, column + 1)
            _swap_neighbours(order, before, after)
            crossed = crossings(grid, order)
            if crossed < fewest:
                best, fewest = [list(column) for column in order], crossed
        yield best


def _sort_column(order: Order, column: int, links: Sequence[Sequence[int]], fixed: int) -> None:
    """The barycentre rule of Sugiyama et al. (1981): each vertex moves to the mean of its neighbours."""
    place = {v: i for i, v in enumerate(order[fixed])}
    scale = len(order[fixed]) / max(1, len(order[column]))
    wish = {
        v: sum(place[n] for n in links[v]) / len(links[v]) if links[v] else i * scale
        for i, v in enumerate(order[column])
    }
    order[column].sort(key=wish.__getitem__)


def _swap_neighbours(order: Order, before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> None:
    """Swaps adjacent vertices while that removes crossings."""
    place = {v: i for column in order for i, v in enumerate(column)}
    improved = True
    while improved:
        improved = False
        for column in order:
            for i, (u, v) in enumerate(itertools.pairwise(column)):
                gain = sum(
                    (place[p] > place[q]) - (place[p] < place[q])
                    for links in (before, after)
                    for p in links[u]
                    for q in links[v]
                )
                if gain > 0:
                    column[i], column[i + 1] = v, u
                    place[u], place[v] = i + 1, i
                    improved = True
                    break


def crossings(grid: Grid, order: Order) -> int:
    """How many pairs of wires cross between neighbouring columns."""
    place = {v: i for column in order for i, v in enumerate(column)}
    steps: dict[int, list[tuple[int, int]]] = {}
    for chain in grid.chains.values():
        for a, b in itertools.pairwise(chain):
            steps.setdefault(grid.columns[a], []).append((place[a], place[b]))
    total = 0
    for pairs in steps.values():
        ends = np.asarray(pairs)
        signs = np.subtract.outer(ends[:, 0], ends[:, 0]) * np.subtract.outer(ends[:, 1], ends[:, 1])
        total += int((signs < 0).sum()) // 2
    return total


Point = tuple[float, float]
Run = tuple[float, float, float]
_Held = tuple[int, float, float, list[tuple[int, float]]]
"""A vertex of a column, its offset there, the sum of its links' weights, and the links."""

_PORT_STEP, ARROW = 0.13, 0.19
_SETTLE, _FINALISTS = 24, 4
_FLOORS = (1e9, 0.5, 0.25, 0.12, 0.06, 0.03, 0.01)


@dataclass(frozen=True, slots=True)
class Wire:
    """The route of one edge: level runs `(x from, x to, y)` in inches, joined by S-curves."""

    runs: tuple[Run, ...]
    label: Point | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything goes, in inches from the lower left corner; `nodes` holds centres."""

    width: float
    height: float
    nodes: Mapping[str, Point]
    wires: Mapping[Edge, Wire]


def arrange(graph: nx.DiGraph[str], *, sizes: Mapping[str, Size], labels: Mapping[Edge, Size]) -> Layout:
    """Lays the graph out from left to right; the same graph always gives the same layout.

    graph: a DAG whose nodes carry `role`; nodes without predecessors other than inputs start in column 1.
    sizes: width and height of every node box; labels: of every edge label, only for edges that have one.
    """
    grid = expand(graph, sizes=sizes, labels=labels)
    scored = sorted(
        ((crossings(grid, order), number, order) for number, order in enumerate(orders(grid))),
        key=lambda entry: entry[:2],
    )
    finalists = [order for crossed, _, order in scored if crossed == scored[0][0]][:_FINALISTS]
    heights = min((_heights(grid, order) for order in finalists), key=lambda ys: _bending(grid, ys))
    return _route(grid, _upright(graph, grid, heights))


def effort(graph: nx.DiGraph[str]) -> int:
    """How much work the layout of a graph is, roughly.

    Its nodes and slots times its columns, and for each gap between columns the square of the wires in it.
    """
    rank = layers(graph)
    gaps = max(rank.values(), default=0)
    wires = [0] * (gaps + 1)
    for source, target in graph.edges:
        wires[rank[source]] += 1
        wires[rank[target]] -= 1
    wires = list(itertools.accumulate(wires))
    slots = len(graph) + 2 * sum(wires)
    return slots * (2 * gaps + 1) + 2 * sum(count**2 for count in wires)


def _heights(grid: Grid, order: Order) -> list[float]:
    """Heights with few bends: the sum of the steps' rises, minimised as reweighted squares.

    Squares alone would spread one rise over many small steps. Each pass is a block descent whose blocks are
    the columns; a column's separation constraints make its block an isotonic regression.
    """
    nodes = set(grid.names.values())
    steps = [step for chain in grid.chains.values() for step in itertools.pairwise(chain)]
    heights = [0.0] * len(grid.columns)
    offsets = [_stack(grid, column) for column in order]
    for floor in _FLOORS:
        links: list[list[tuple[int, float]]] = [[] for _ in grid.columns]
        for a, b in steps:
            stiffness = 1.0 if a in nodes or b in nodes else 4.0
            weight = stiffness / max(abs(heights[a] - heights[b]), floor)
            links[a].append((b, weight))
            links[b].append((a, weight))
        columns = [
            [(v, o, sum(w for _, w in links[v]), links[v]) for v, o in zip(column, offset, strict=True)]
            for column, offset in zip(order, offsets, strict=True)
        ]
        for _ in range(_SETTLE):
            before = heights.copy()
            for column in itertools.chain(columns, reversed(columns)):
                _settle(heights, column)
            if heights == before:
                break
    return heights


def _settle(heights: list[float], column: Sequence[_Held]) -> None:
    """Moves one column to its best heights, the neighbours held."""
    targets = []
    for v, offset, weight, links in column:
        if weight:
            pulled = 0.0
            for neighbour, stiffness in links:
                pulled += heights[neighbour] * stiffness
            targets.append(pulled / weight - offset)
        else:
            targets.append(heights[v] - offset)
    if any(a >= b for a, b in itertools.pairwise(targets)):
        targets = _isotonic(targets, [weight or 1e-6 for _, _, weight, _ in column])
    for (v, offset, _, _), height in zip(column, targets, strict=True):
        heights[v] = height + offset


def _stack(grid: Grid, column: Sequence[int]) -> list[float]:
    """The tightest allowed heights of a column's vertices, centred on 0."""
    heights = [0.0]
    for a, b in itertools.pairwise(column):
        room = (grid.sizes[a][1] + grid.sizes[b][1]) / 2 + max(grid.gaps[a], grid.gaps[b])
        heights.append(heights[-1] + room)
    return [height - heights[-1] / 2 for height in heights][: len(column)]


def _isotonic(targets: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `targets` in weighted squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for target, weight in zip(targets, weights, strict=True):
        mean, mass, count = target, weight, 1
        while blocks and blocks[-1][0] >= mean:
            previous, other, members = blocks.pop()
            mean = (mean * mass + previous * other) / (mass + other)
            mass, count = mass + other, count + members
        blocks.append((mean, mass, count))
    return [mean for mean, _, count in blocks for _ in range(count)]


def _bending(grid: Grid, heights: Sequence[float]) -> float:
    return sum(
        abs(heights[a] - heights[b]) for chain in grid.chains.values() for a, b in itertools.pairwise(chain)
    )


def _upright(graph: nx.DiGraph[str], grid: Grid, heights: Sequence[float]) -> list[float]:
    """`heights` counted upwards, mirrored where needed so that the first input is the upper one."""
    inputs = [grid.names[node] for node in graph if role_of(graph, node) == "input"]
    upwards = len(inputs) < 2 or heights[inputs[0]] > heights[inputs[-1]]
    return [height if upwards else -height for height in heights]


def _route(grid: Grid, heights: Sequence[float]) -> Layout:
    lows = [y - size[1] / 2 for y, size in zip(heights, grid.sizes, strict=True)]
    highs = [y + size[1] / 2 for y, size in zip(heights, grid.sizes, strict=True)]
    floor = min(lows, default=0.0)
    ys = [y - floor for y in heights]
    spans = _spans(grid, ys)
    wires = _wires(grid, ys, spans)
    nodes = {name: (sum(spans[grid.columns[v]]) / 2, ys[v]) for name, v in grid.names.items()}
    return Layout(max((x for _, x in spans), default=0.0), max(highs, default=0.0) - floor, nodes, wires)


def _spans(grid: Grid, ys: Sequence[float]) -> list[tuple[float, float]]:
    """Left and right end of every column; the steeper the steps between two columns, the wider the gap."""
    count = max(grid.columns, default=-1) + 1
    widths, rises = [0.0] * count, [0.0] * count
    for column, (width, _) in zip(grid.columns, grid.sizes, strict=True):
        widths[column] = max(widths[column], width)
    for chain in grid.chains.values():
        for a, b in itertools.pairwise(chain):
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
    """Where each edge leaves (`end` 0) or enters (`end` -1) its node, spread in the order of the slots."""
    groups: dict[int, list[Edge]] = {}
    for edge, chain in grid.chains.items():
        groups.setdefault(chain[end], []).append(edge)
    ports = {}
    for vertex, edges in groups.items():
        edges.sort(key=lambda e: ys[grid.chains[e][1 if end == 0 else -2]])
        step = min(_PORT_STEP, 0.7 * grid.sizes[vertex][1] / len(edges))
        for i, edge in enumerate(edges):
            ports[edge] = ys[vertex] + (i - (len(edges) - 1) / 2) * step
    return ports
