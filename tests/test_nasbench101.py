"""NAS-Bench-101: what project makes of any scores, the published network, and the published table."""

import functools
import itertools
import json

import networkx as nx
import numpy as np
import pytest
import torch
from published import table

from nas.errors import ConfigError, TrialError
from nas.evaluate.benchmarks import cell_hashes, load_nasbench101
from nas.space.cell import VertexCell
from nas.space.cost import count_params
from nas.space.loading import load
from nas.spaces.nasbench101 import COUNT, EDGES, INNER, OPTIONS, OUTPUT, vertex_channels, wirings

SPACE = load("nasbench101", width=5, stacks=2, cells=1)
FULL = load("nasbench101")
INCEPTION = {
    "matrix": [
        [0, 1, 1, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ],
    "ops": ["input", *(OPTIONS[o] for o in (1, 0, 0, 0, 2)), "output"],
}
"""The example of the published code's README."""


def edges_of(genotype):
    return [edge for edge, on in zip(EDGES, genotype, strict=False) if on]


def ops_of(genotype):
    return dict(zip(INNER, genotype[len(EDGES) :], strict=True))


def assert_valid(genotype):
    graph = nx.DiGraph(edges_of(genotype))
    assert 1 <= graph.number_of_edges() <= 9
    on_a_path = (nx.descendants(graph, 0) | {0}) & (nx.ancestors(graph, OUTPUT) | {OUTPUT})
    assert set(graph) == on_a_path
    assert all(op == 0 for v, op in ops_of(genotype).items() if v not in graph)


def some_scores(rng):
    """Uniform noise, heavy tails, many ties, all against every edge, and all for it."""
    rows = [len(d.options) for d in SPACE.decisions]
    return [
        [rng.random(n) for n in rows],
        [rng.standard_cauchy(n) for n in rows],
        [rng.integers(0, 2, n).astype(float) for n in rows],
        [rng.random(n) * (3 if n == 3 else [9, 1]) for n in rows],
        [rng.random(n) * (3 if n == 3 else [1, 9]) for n in rows],
    ]


def samples(count, seed=0):
    rng = np.random.default_rng(seed)
    return [SPACE.sample(rng) for _ in range(count)]


# -- what is valid ------------------------------------------------------------------------------------


def test_project_gives_valid_cells_and_leaves_them_alone():
    rng = np.random.default_rng(0)
    for scores in itertools.chain(*(some_scores(rng) for _ in range(40))):
        genotype = SPACE.nearest(scores)
        assert_valid(genotype)
        assert SPACE.nearest(SPACE.one_hot(genotype)) == genotype


# -- the network --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "channels", "wanted"),
    [
        ([(0, 6)], 128, {}),
        ([(0, 3), (3, 6)], 128, {3: 128}),
        ([(0, v) for v in INNER] + [(v, 6) for v in INNER], 128, {1: 26, 2: 26, 3: 26, 4: 25, 5: 25}),
        ([(0, 1), (0, 2), (1, 3), (2, 6), (3, 6), (0, 6)], 5, {1: 2, 2: 3, 3: 2}),
        ([(0, 1), (1, 2), (1, 4), (2, 6), (3, 6), (0, 3), (4, 6)], 8, {1: 3, 2: 3, 3: 3, 4: 2}),
    ],
)
def test_the_output_channels_are_divided(edges, channels, wanted):
    assert vertex_channels(sorted(edges, key=EDGES.index), channels) == wanted


def test_a_cell_computes_what_the_published_code_does():
    """Its loop over the adjacency matrix, with the weights of ours."""
    space, checked = load("nasbench101", width=7, stacks=1, cells=1), set()
    for genotype in samples(40, seed=1):
        network = space.network(genotype).eval()
        cell = next(m for m in network.modules() if isinstance(m, VertexCell))
        matrix = np.zeros((7, 7), dtype=bool)
        matrix[tuple(zip(*edges_of(genotype), strict=True))] = True
        x = torch.randn(2, 7, 6, 6)
        maps, final = {0: x}, []
        for t in (v for v in INNER if matrix[:, v].any()):
            vertex = cell.vertices[str(t)]
            width = vertex.channels
            read = [maps[src][:, :width] for src in range(1, t) if matrix[src, t]]
            if matrix[0, t]:
                read.append(vertex.projection(x))
            checked |= {maps[src].shape[1] - width for src in range(1, t) if matrix[src, t]}
            maps[t] = vertex.op(sum(read))
            final += [maps[t]] if matrix[t, 6] else []
        wanted = torch.cat(final, dim=1) if final else 0
        if matrix[0, 6]:
            wanted = wanted + cell.vertices["6"].projection(x)
        torch.testing.assert_close(cell(x), wanted)
    assert checked == {0, 1}, "some maps are cut by one channel"


def test_the_published_example_has_the_published_number_of_parameters():
    genotype = FULL.notation.read(json.dumps(INCEPTION))
    assert json.loads(FULL.notation.write(genotype)) == INCEPTION
    assert count_params(FULL.network(genotype, meta=True)) == 2_694_282


# -- the published table ------------------------------------------------------------------------------


@functools.cache
def benchmark():
    return load_nasbench101(table("nasbench101.npz"))


@functools.cache
def columns():
    with np.load(table("nasbench101.npz")) as file:
        return dict(file)


def test_every_cell_is_in_the_table_and_the_table_has_no_other():
    wiring = wirings().astype(np.uint32)
    codes = (wiring << np.arange(21, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    reads = np.stack([wiring[:, [dst == v for _, dst in EDGES]].any(axis=1) for v in INNER], axis=1)
    found = []
    for ops in itertools.product(range(3), repeat=5):
        valid = (reads | (np.array(ops) == 0)).all(axis=1)
        labels = np.zeros((valid.sum(), 7), dtype=np.uint8)
        labels[:, 0], labels[:, OUTPUT] = 1, 2
        labels[:, 1:OUTPUT] = reads[valid] * (3 + np.array(ops))
        found.append(cell_hashes(codes[valid], labels))
    hashes = np.concatenate(found)
    assert len(hashes) == COUNT
    assert np.array_equal(np.unique(hashes), benchmark().hashes)


def test_what_the_table_does_not_hold():
    genotype = samples(1)[0]
    with pytest.raises(ConfigError, match=r"knows \(108,\) epochs, not 12"):
        benchmark().metrics(genotype, 12)
    with pytest.raises(ConfigError, match="no training times"):
        benchmark().seconds(genotype, 108)
    for missing in ((0,) * 26, (1,) * 21 + (0,) * 5):
        with pytest.raises(TrialError, match="has no cell") as caught:
            benchmark().metrics(missing, 108)
        assert caught.value.reason == "missing"


def flipped(columns, data):
    data[len(data) // 2] ^= 4
    return bytes(data)


def cut(columns, data):
    columns["ops"] = columns["ops"][:-1]


def repeated(columns, data):
    for column in columns.values():
        column[1] = column[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flipped, ""),
        (cut, r"ops is uint16 \(423623,\), wanted uint16 \(423624,\)"),
        (repeated, "some of its cells are isomorphic"),
        (lambda columns, data: columns.pop("ops") is None, "ops"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, damage, message):
    path, kept = tmp_path / "nasbench101.npz", {name: column.copy() for name, column in columns().items()}
    if data := damage(kept, bytearray(table("nasbench101.npz").read_bytes())):
        path.write_bytes(data)
    else:
        np.savez(path, **kept)
    with pytest.raises(ConfigError, match=f"is damaged: .*{message}"):
        load_nasbench101(path)
