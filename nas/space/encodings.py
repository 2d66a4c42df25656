"""Architectures as numbers: what surrogates are fitted on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from nas.space.graph import CONNECT, Graph, cell_graphs
from nas.space.space import Space, remembered
from nas.types import Genotype

Path = tuple[str, ...]
MAX_PATHS = 2000
"""A cell with more different paths is described by its shortest ones, as BANANAS truncates them."""


def features(space: Space, genotypes: Sequence[Genotype]) -> list[NDArray[np.float64]]:
    """Blocks `[N, F]` of features: chosen options (one-hot), option counts, and paths.

    Only comparable within one call: paths are columns in the order of their names.
    """
    one_hot = np.array([np.concatenate(space.one_hot(genotype)) for genotype in genotypes])
    paths = [path_counts(space, genotype) for genotype in genotypes]
    columns = {path: i for i, path in enumerate(sorted(set().union(*paths)))}
    matrix = np.zeros((len(genotypes), max(1, len(columns))))
    for row, counts in zip(matrix, paths, strict=True):
        for path, count in counts.items():
            row[columns[path]] = count
    names = sorted({option for d in space.decisions for option in d.options})
    chosen = [Counter(space.choices(genotype).values()) for genotype in genotypes]
    return [one_hot, np.array([[float(row[name]) for name in names] for row in chosen]), matrix]


@remembered
def path_counts(space: Space, genotype: Genotype) -> Counter[Path]:
    """How many paths from an input to an output of its cells spell the same operations.

    The path encoding of BANANAS (White et al. 2021, AAAI, §3), with counts for bits; identities and plain
    connections spell nothing. Isomorphic architectures have equal counts.
    """
    counts: Counter[Path] = Counter()
    for kind, graph in cell_graphs(space, genotype).items():
        for path, number in _paths(graph).items():
            counts[(kind, *path)] += number
    return counts


def _paths(graph: Graph) -> Counter[Path]:
    """Operations along every path to the outputs, by dynamic programming over the sorted nodes."""
    arriving: dict[str, Counter[Path]] = {}
    found: Counter[Path] = Counter()
    for node in nx.topological_sort(graph):
        data = graph.nodes[node]
        here: Counter[Path] = Counter({(node,): 1}) if data["role"] == "input" else Counter()
        for src, _, edge in graph.in_edges(node, data=True):
            step = () if edge["role"] == "identity" or edge["op"] in ("concat", CONNECT) else (edge["op"],)
            for path, count in arriving[src].items():
                here[(*path, *step)] += count
        if "op" in data:
            here = Counter({(*path, data["op"]): count for path, count in here.items()})
        if len(here) > MAX_PATHS:
            here = Counter(dict(sorted(here.items(), key=lambda item: (len(item[0]), item[0]))[:MAX_PATHS]))
        arriving[node] = here
        if data["role"] == "output":
            found += here
    return found
