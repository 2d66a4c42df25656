"""A DAG cut into columns: each edge becomes a chain of slots, each column an order with few crossings."""

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
