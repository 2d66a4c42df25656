"""The skeleton: blocks in the order they run, what feeds what, and shapes, without touching the network."""

import numpy as np
import pytest
import torch

from nas.space.graph import skeleton
from nas.space.loading import load


def network(name, **settings):
    space = load(name, **settings)
    return space.network(space.sample(np.random.default_rng(0)))


def test_a_darts_network():
    graph = skeleton(network("darts", width=4, cells=3), (3, 32, 32))
    names = ["input", "stem", "cells.0", "cells.1", "cells.2", "pool", "head"]
    assert list(graph.nodes) == names
    assert [graph.nodes[n]["kind"] for n in names] == [
        "input", "stem", "normal", "reduce", "reduce", "head", "head",
    ]  # fmt: skip
    shapes = ["3×32×32", "12×32×32", "16×32×32", "32×16×16", "64×8×8", "64×1×1", "10"]
    assert [graph.nodes[n]["shape"] for n in names] == shapes
    assert set(graph.edges) == {
        ("input", "stem"),
        ("stem", "cells.0"),
        ("stem", "cells.1"),
        ("cells.0", "cells.1"),
        ("cells.0", "cells.2"),
        ("cells.1", "cells.2"),
        ("cells.2", "pool"),
        ("pool", "head"),
    }


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    net = network("nasbench201", width=4, cells=1).train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    skeleton(net, (3, 8, 8))
    assert net.training == training and all(m.training == training for m in net.modules())
    assert not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
