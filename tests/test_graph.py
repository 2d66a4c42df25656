"""Graphs of architectures: what they show, and a hash that is equal exactly for isomorphic ones."""

import itertools

import networkx as nx
import numpy as np
import pytest
from torch import nn

from nas.space.cell import VertexCell
from nas.space.graph import architecture_hash, cell_graphs, from_dict, merged, to_dict
from nas.space.loading import load
from nas.space.ops import candidates
from nas.space.space import Space
from nas.spaces.darts import OPTIONS as DARTS_OPTIONS
from nas.spaces.nasbench201 import EDGES, OPTIONS

CELLS = load("nasbench201", width=4, cells=1)
DARTS = load("darts", width=4, cells=3)


# -- the hash -----------------------------------------------------------------------------------------


def simplified(genotype):
    """A NAS-Bench-201 cell without zeros, dead parts and lone identities, by means of its own."""
    edges = [(a, b, OPTIONS[o]) for (a, b), o in zip(EDGES, genotype, strict=True) if OPTIONS[o] != "none"]
    while True:
        graph = nx.MultiDiGraph([(a, b) for a, b, _ in edges])
        graph.add_nodes_from([0, 3])
        live = (nx.descendants(graph, 0) | {0}) & (nx.ancestors(graph, 3) | {3})
        kept = [(a, b, op) for a, b, op in edges if a in live and b in live]
        lone = [
            (a, b)
            for a, b, op in kept
            if op == "skip_connect" and sum(dst == b for _, dst, _ in kept) == 1 and (a, b) != (0, 3)
        ]
        if not lone and kept == edges:
            break
        edges = kept
        if lone:
            a, b = lone[0]
            old, new = (a, b) if b == 3 else (b, a)
            edges.remove((a, b, "skip_connect"))
            edges = [(new if x == old else x, new if y == old else y, op) for x, y, op in edges]
    graph = nx.MultiDiGraph()
    graph.add_nodes_from([(0, {"end": "in"}), (3, {"end": "out"})])
    for a, b, op in edges:
        graph.add_edge(a, b, op=op)
    return graph


def isomorphic(one, two):
    return nx.is_isomorphic(
        simplified(one),
        simplified(two),
        node_match=lambda a, b: a.get("end") == b.get("end"),
        edge_match=nx.algorithms.isomorphism.categorical_multiedge_match("op", None),
    )


def permuted(genotype):
    """The same cell with nodes 1 and 2 exchanged; only cells without an edge between them have one."""
    into1, into2, _, skip, out1, out2 = genotype
    return (into2, into1, 0, skip, out2, out1)


def test_the_hash_is_equal_exactly_for_isomorphic_cells():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(120):
        one = CELLS.sample(rng)
        apart = (*one[:2], 0, *one[3:])
        pairs += [(one, CELLS.sample(rng)), (one, CELLS.mutate(one, rng)), (apart, permuted(apart))]
    outcomes = [isomorphic(*pair) for pair in pairs]
    for pair, same in zip(pairs, outcomes, strict=True):
        hashes = {architecture_hash(CELLS, genotype) for genotype in pair}
        assert (len(hashes) == 1) == same, pair
    assert all(outcomes[2::3]) and 5 < sum(outcomes[1::3]) < 100


def test_the_whole_space_falls_into_6985_classes_and_each_bucket_is_isomorphic():
    buckets = {}
    for genotype in CELLS.enumerate():
        buckets.setdefault(architecture_hash(CELLS, genotype), []).append(genotype)
    assert len(buckets) == 6_985
    rng = np.random.default_rng(0)
    shared = [bucket for bucket in buckets.values() if len(bucket) > 1]
    for i in rng.choice(len(shared), 100, replace=False):
        one, two = (shared[i][int(k)] for k in rng.choice(len(shared[i]), 2, replace=False))
        assert isomorphic(one, two), (one, two)


def test_a_skip_of_stride_two_is_no_identity():
    skip = DARTS_OPTIONS.index("skip_connect")
    graphs = cell_graphs(DARTS, DARTS.nearest([np.eye(8)[skip] for _ in DARTS.decisions]))
    roles = {
        kind: {d["role"] for a, _, d in graph.edges(data=True) if a in ("in0", "in1")}
        for kind, graph in graphs.items()
    }
    assert roles == {"normal": {"identity"}, "reduce": {"op"}}


def test_the_hash_is_the_same_on_every_machine_and_at_every_size():
    genotype = (3, 1, 2, 1, 0, 4)
    assert architecture_hash(CELLS, genotype) == architecture_hash(load("nasbench201"), genotype)
    assert architecture_hash(CELLS, genotype) == "cc6189b1afc27f14"


def test_plain_values_and_unasked_decisions():
    def build(choose):
        depth = choose.value("depth", (1, 2, 3))
        kernels = {"one": lambda: nn.Conv2d(3, 3, 1), "three": lambda: nn.Conv2d(3, 3, 3)}
        return nn.Sequential(*(choose.op(f"kernel{i}", kernels) for i in range(depth)))

    space = Space("deep", build)
    hashes = {g: architecture_hash(space, g) for g in itertools.product(range(3), (0, 1), (0, 1), (0, 1))}
    assert len(set(hashes.values())) == 14
    assert hashes[0, 1, 0, 1] == hashes[0, 1, 1, 0] != hashes[1, 1, 0, 1]
    graph = cell_graphs(space, (1, 1, 0, 0))["network"]
    assert graph.graph["values"] == {"depth": "2"}
    assert [op for _, _, op in graph.edges(data="op")] == ["three", "one"], "no third block is drawn"


# -- what graphs show ---------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [CELLS, DARTS, load("toy")], ids=lambda s: s.name)
def test_graphs_survive_json_and_graphml(space, tmp_path):
    graphs = cell_graphs(space, space.sample(np.random.default_rng(1)))
    for graph in graphs.values():
        again = from_dict(to_dict(graph))
        assert nx.utils.graphs_equal(again, graph) and again.graph["kind"] == graph.graph["kind"]
    nx.write_graphml(merged(graphs), tmp_path / "a.graphml")
    read = nx.read_graphml(tmp_path / "a.graphml")
    assert len(read) == sum(map(len, graphs.values()))
    assert nx.number_weakly_connected_components(read) >= len(graphs)


# -- operations on vertices ---------------------------------------------------------------------------


def vertex_space():
    """A cell of four vertices; the value `wiring` puts the inner two in a row or side by side."""
    wirings = {"row": [(0, 1), (1, 2), (2, 3)], "beside": [(0, 1), (0, 2), (1, 3), (2, 3)]}
    options = candidates(["nor_conv_1x1", "nor_conv_3x3"], 4, 4)

    def build(choose):
        depth = choose.value("depth", (1, 2))
        edges = wirings[choose.value("wiring", tuple(wirings))]

        def vertex(dst, sources):
            return nn.Identity() if dst == 3 else choose.op(f"op{dst}", options)

        return nn.Sequential(*(VertexCell("cell", edges, vertex, decisions=["wiring"]) for _ in range(depth)))

    return Space("vertices", build)


def test_the_graph_shows_the_wiring_that_was_chosen():
    space = vertex_space()
    graphs = {wiring: cell_graphs(space, (0, wiring, 0, 1)) for wiring in (0, 1)}
    assert [list(g) for g in graphs.values()] == [["cell"], ["cell"]]
    row, beside = (g["cell"] for g in graphs.values())
    assert set(row.edges) == {("in0", "1"), ("1", "2"), ("2", "out")}
    assert set(beside.edges) == {("in0", "1"), ("in0", "2"), ("1", "out"), ("2", "out")}
    assert row.nodes["2"] == {"role": "node", "label": "2", "op": "nor_conv_3x3", "decision": "op2"}
    assert row.graph["values"] == {"depth": "1"}, "the edges show the wiring, but not the depth"
