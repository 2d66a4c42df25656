"""Architectures as numbers: paths and counts by hand, and what isomorphism keeps."""

import json
from collections import Counter

import numpy as np
import pytest
from torch import nn

from nas.seeding import rng
from nas.space.encodings import features, path_counts
from nas.space.graph import architecture_hash
from nas.space.loading import load
from nas.space.space import Space
from nas.spaces.nasbench101 import from_json
from nas.spaces.nasbench201 import from_string

TOY, CELLS, DARTS, VERTICES = (load(name) for name in ("toy", "nasbench201", "darts", "nasbench101"))
ONE, THREE, POOL = "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"


def two_convolutions(choose):
    kernels = {"one": lambda: nn.Conv2d(3, 3, 1), "three": lambda: nn.Conv2d(3, 3, 3)}
    return nn.Sequential(choose.op("first", kernels), choose.op("second", kernels))


def deep(choose):
    """A chain whose depth is a decision too."""
    depth = choose.value("depth", (1, 2))
    kernels = {"one": lambda: nn.Conv2d(3, 3, 1), "three": lambda: nn.Conv2d(3, 3, 3)}
    return nn.Sequential(*(choose.op(f"kernel{i}", kernels) for i in range(depth)))


CHAIN, DEEP = Space("chain", two_convolutions), Space("deep", deep)


def drawn(space, count):
    return [space.sample(rng(0, i)) for i in range(count)]


# -- paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "paths"),
    [
        (f"|{THREE}~0|+|none~0|none~1|+|none~0|{ONE}~1|none~2|", {(THREE, ONE): 1}),
        # An identity spells nothing, so that two ways are one path, twice.
        (f"|skip_connect~0|+|none~0|none~1|+|{THREE}~0|{THREE}~1|none~2|", {(THREE,): 2}),
        ("|skip_connect~0|+|none~0|none~1|+|skip_connect~0|skip_connect~1|none~2|", {(): 2}),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", {}),
        # Node 2 leads nowhere.
        (f"|{ONE}~0|+|{POOL}~0|{POOL}~1|+|{THREE}~0|{ONE}~1|none~2|", {(THREE,): 1, (ONE, ONE): 1}),
        (
            f"|{ONE}~0|+|{POOL}~0|{THREE}~1|+|{THREE}~0|{ONE}~1|{POOL}~2|",
            {(THREE,): 1, (ONE, ONE): 1, (POOL, POOL): 1, (ONE, THREE, POOL): 1},
        ),
    ],
)
def test_paths_of_a_cell_by_hand(cell, paths):
    expected = {("cell", *path): count for path, count in paths.items()}
    # A path begins with the input it comes from.
    found = Counter()
    for (kind, source, *path), count in path_counts(CELLS, from_string(cell)).items():
        assert source == "in0"
        found[(kind, *path)] += count
    assert found == expected


def test_equal_hashes_mean_equal_paths():
    classes = {}
    for parent in drawn(CELLS, 60):
        for genotype in (parent, *CELLS.neighbours(parent)[:8]):
            classes.setdefault(architecture_hash(CELLS, genotype), set()).add(genotype)
    several = [members for members in classes.values() if len(members) > 1]
    assert len(several) > 3
    for members in several:
        first, *others = (path_counts(CELLS, genotype) for genotype in members)
        assert all(other == first for other in others)


def test_paths_where_operations_stand_on_vertices():
    """Input to 1 (3x3) to output, to 1 to 2 (pool) to output, and to output at once."""
    matrix = [[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    ops = ["input", "conv3x3-bn-relu", "maxpool3x3", "output"]
    genotype = from_json(json.dumps({"matrix": matrix, "ops": ops}))
    paths = [("in0",), ("in0", "conv3x3-bn-relu"), ("in0", "conv3x3-bn-relu", "maxpool3x3")]
    assert path_counts(VERTICES, genotype) == {("cell", *path): 1 for path in paths}


# -- features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [TOY, CELLS, DARTS, VERTICES, CHAIN, DEEP], ids=lambda space: space.name)
def test_features_are_options_counts_and_paths(space):
    genotypes = drawn(space, 5)
    one_hot, counts, paths = features(space, genotypes)
    for i, genotype in enumerate(genotypes):
        assert np.array_equal(one_hot[i], np.concatenate(space.one_hot(genotype)))
        assert sorted(paths[i][paths[i] > 0]) == sorted(path_counts(space, genotype).values())
    assert one_hot.sum(1).tolist() == counts.sum(1).tolist() == [len(space.decisions)] * 5
    again = features(space, genotypes[::-1])
    assert all(np.array_equal(a[::-1], b) for a, b in zip(again, (one_hot, counts, paths), strict=True))
