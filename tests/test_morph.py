import itertools

import numpy as np
import pytest
import torch
from nested import nested_space
from torch import nn

from nas.errors import SpaceError
from nas.searchers.evolution import RegularizedEvolution
from nas.space.cell import Cell
from nas.space.loading import load
from nas.space.network_morphism import additions, graft, is_addition
from nas.space.ops import candidates
from nas.space.space import Space
from nas.types import Trial


def chain_and_cells():
    """Branches beside identities, the depth of a chain, and a cell in two places, once with a stride."""

    def build(choose):
        layers = [Residual(choose.op("beside", candidates(["none", "sep_conv_3x3"], 4, 4)))]
        for i in range(choose.value("depth", (0, 1))):
            layers.append(
                Residual(choose.op(f"deep{i}", candidates(["none", "dil_conv_3x3", "conv_7x1_1x7"], 4, 4)))
            )
        names = ["skip_connect", "none", "nor_conv_1x1", "max_pool_3x3"]
        for stride in (1, 2):
            edges = [candidates(names, 4, 4, stride), candidates(names, 4, 4)]
            layers.append(Cell("cell", 1, 2, lambda i, j, e=edges: choose.op(f"{i}->{j}", e[i])))
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), *layers, Head(4))

    return Space("chain", build)


class Residual(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        return x + self.op(x)


class Head(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


CELLS = load("nasbench201", width=4, cells=1, classes=5)
SPACES = {"nasbench201": CELLS, "chain": chain_and_cells(), "nested": nested_space()}


def rng(seed=0):
    return np.random.default_rng(seed)


def images(seed=0, dtype=torch.float64):
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def trained(space, genotype, *, dtype=torch.float64):
    """A network whose weights and statistics are no longer the fresh ones."""
    network = space.network(genotype).to(dtype).train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.3, 0.4)
    network(images(1, dtype))
    return network


def parents(space, count=3):
    """Random architectures that something can be added to."""
    drawn = (space.sample(rng(seed)) for seed in itertools.count())
    return list(itertools.islice((genotype for genotype in drawn if additions(space, genotype)), count))


# -- which architectures ----------------------------------------------------------------------------------


def test_the_additions_of_a_cell():
    # Options: none, skip_connect, nor_conv_1x1, nor_conv_3x3, avg_pool_3x3.
    found = additions(CELLS, (3, 0, 1, 0, 4, 2))
    assert found == [(3, 0, 1, 2, 4, 2), (3, 0, 1, 3, 4, 2), (3, 2, 1, 0, 4, 2), (3, 3, 1, 0, 4, 2)]


@pytest.mark.parametrize(
    ("parent", "edge", "learns"),
    [
        ((0, 3, 0, 0, 0, 3), 3, True),  # node 3 has another input
        ((3, 0, 0, 1, 0, 0), 4, True),  # node 1 was computed for nothing before
        ((0, 0, 3, 1, 3, 1), 0, False),  # node 1 is read through ReLUs only, and has no other input
        ((0, 0, 0, 1, 0, 0), 0, False),  # nobody reads node 1
        ((0, 0, 0, 1, 0, 0), 5, False),  # node 2 is zero
    ],
)
def test_an_addition_must_be_able_to_learn(parent, edge, learns):
    child = (*parent[:edge], 3, *parent[edge + 1 :])
    assert is_addition(CELLS, parent, child) == (child in additions(CELLS, parent)) == learns


def grow(space, parent, network, child):
    """The child's network with the weights of its parent's `network`."""
    grown = space.network(child).to(next(network.parameters()).dtype)
    graft(space, child, grown, parent=parent, weights=network.state_dict())
    return grown.train(network.training)


# -- the same function ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "mode"), [(torch.float64, True), (torch.float32, False)])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_grown_network_computes_the_same(space, dtype, mode):
    for parent in parents(space):
        network = trained(space, parent, dtype=dtype).train(mode)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        for child in additions(space, parent):
            grown = grow(space, parent, network, child)
            assert grown.training == mode
            assert {p.dtype for p in grown.parameters()} == {dtype}
            assert grown.state_dict().keys() > before.keys()
            after = grown.state_dict()
            assert all(torch.equal(after[name], value) for name, value in before.items())
            with torch.no_grad():
                assert torch.equal(grown(images(dtype=dtype)), network(images(dtype=dtype)))
            network.load_state_dict(before)


# -- what cannot be grown ---------------------------------------------------------------------------------


def test_what_is_no_addition_is_refused():
    parent = (3, 0, 1, 0, 4, 2)
    for child in (
        (3, 0, 1, 0, 4, 2),  # itself
        (3, 1, 1, 0, 4, 2),  # an identity adds to the output
        (3, 4, 1, 0, 4, 2),  # so does a pool
        (3, 3, 1, 3, 4, 2),  # two additions
        (3, 3, 1, 0, 4, 3),  # an addition and a change
        (0, 0, 1, 0, 4, 2),  # less
    ):
        assert not is_addition(CELLS, parent, child)
        with pytest.raises(SpaceError, match="is no addition to"):
            grow(CELLS, parent, trained(CELLS, parent), child)


# -- evolution --------------------------------------------------------------------------------------------


def history(*genotypes):
    return [Trial(i, g, 1, "done", {"val_acc": i / 100}) for i, g in enumerate(genotypes)]


def test_evolution_draws_additions():
    past = history((1, 2, 3, 4, 1, 2), (3, 0, 1, 0, 4, 2))
    searcher = RegularizedEvolution(2, 2, morphism=1.0)
    drawn = {searcher.ask(CELLS, past, rng(seed)) for seed in range(40)}
    assert drawn == set(additions(CELLS, past[-1].genotype))
