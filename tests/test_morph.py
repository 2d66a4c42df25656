import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.errors import ConfigError, SpaceError
from nas.searchers import RegularizedEvolution
from nas.space.cell import Cell
from nas.space.loading import load
from nas.space.network_morphism import additions, graft, is_addition, last_norm
from nas.space.ops import PRIMITIVES, FactorizedReduce, Zero, candidates
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


def nested():
    """A cell whose edges offer a block with a choice of its own inside, and a choice deeper down."""

    def build(choose):
        def block():
            inner = choose.op(
                "inner", candidates(["none", "nor_conv_1x1", "skip_connect"], 4, 4) | {"two": two}
            )
            return nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), inner)

        def two():
            return nn.Sequential(
                nn.ReLU(), choose.op("last", candidates(["max_pool_3x3", "nor_conv_3x3"], 4, 4))
            )

        options = candidates(["skip_connect", "none"], 4, 4) | {"block": block}
        cell = Cell("cell", 1, 2, lambda i, j: choose.op(f"{i}->{j}", options))
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), cell, Head(4))

    return Space("nested", build)


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
CHAIN, NESTED = chain_and_cells(), nested()
SPACES = {"nasbench201": CELLS, "chain": CHAIN, "nested": NESTED}
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def rng(seed=0):
    return np.random.default_rng(seed)


def images(seed=0, dtype=torch.float64):
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


LABELS = torch.arange(6) % 5
FIRST = {"0.weight", "0.0.weight"}
"""The first convolution: without a gradient to it, the cells lead nowhere."""


def trained(space, genotype, *, dtype=torch.float64):
    """A network whose weights and statistics are no longer the fresh ones."""
    network = space.network(genotype).to(dtype).train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.3, 0.4)
    network(images(1, dtype))
    return network


def parents(space, count=4):
    """Random architectures that something can be added to."""
    drawn = (space.sample(rng(seed)) for seed in itertools.count())
    return list(itertools.islice((genotype for genotype in drawn if additions(space, genotype)), count))


def gradients(network):
    """Of the loss, by parameter name; fresh."""
    network.zero_grad()
    F.cross_entropy(network(images()), LABELS).backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in network.named_parameters()}


# -- which architectures ----------------------------------------------------------------------------------


def test_the_additions_of_a_cell():
    # Options: none, skip_connect, nor_conv_1x1, nor_conv_3x3, avg_pool_3x3.
    found = additions(CELLS, (3, 0, 1, 0, 4, 2))
    assert found == [(3, 0, 1, 2, 4, 2), (3, 0, 1, 3, 4, 2), (3, 2, 1, 0, 4, 2), (3, 3, 1, 0, 4, 2)]


def test_without_a_missing_connection_there_is_nothing_to_add():
    assert additions(CELLS, (1, 2, 3, 4, 1, 2)) == []
    assert additions(load("toy"), (0, 1, 2)) == []


def test_there_is_none_where_the_number_of_connections_is_fixed():
    darts = load("darts", width=4, cells=3)
    for seed in range(3):
        assert additions(darts, darts.sample(rng(seed))) == []


def test_each_projection_is_obeyed():
    def at_most_two(decisions, scores):
        genotype = [int(row.argmax()) for row in scores]
        for i in [i for i, option in enumerate(genotype) if option][2:]:
            genotype[i] = 0
        return tuple(genotype)

    space = dataclasses.replace(CELLS, project=at_most_two)
    assert additions(space, (3, 0, 0, 0, 0, 3)) == []
    # A third connection leaves the first two: nothing can be added before them, and after them it is dropped.
    assert additions(space, (0, 3, 0, 3, 0, 0)) == []
    assert additions(space, (0, 0, 0, 3, 1, 0)) == []
    assert additions(space, (3, 0, 0, 0, 3, 0)) == []


@each_space
def test_additions_are_what_is_addition_says(space):
    everything = list(space.enumerate()) if space is not CELLS else [space.sample(rng(s)) for s in range(30)]
    for parent in parents(space):
        listed = additions(space, parent)
        assert listed == sorted(set(listed))
        assert all(space.canonical(child) == child for child in listed)
        assert all(is_addition(space, parent, child) for child in listed)
        others = [child for child in everything if is_addition(space, parent, child) and child not in listed]
        # Left out, but can be grown: another choice deep in an addition, beside the one that leads there.
        assert all(space is NESTED and (child[2], child[3]) == (3, 1) for child in others)


def test_the_answer_is_remembered_and_belongs_to_the_caller():
    first = additions(CELLS, (3, 0, 1, 0, 4, 2))
    first.clear()
    assert len(additions(CELLS, (3, 0, 1, 0, 4, 2))) == 4


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_which_primitives_end_in_a_batch_norm(name, stride):
    ends = last_norm(PRIMITIVES[name](4, 4, stride)) is not None
    assert ends == ("conv" in name or (name == "skip_connect" and stride == 2))


def test_only_what_is_sure_to_end_in_a_norm_counts():
    class Shifted(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    class Twice(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    norm = nn.BatchNorm2d(4)
    assert last_norm(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1), norm))) is norm
    assert last_norm(FactorizedReduce(4, 4)) is not None
    plain = nn.BatchNorm2d(4, affine=False)
    for module in (Shifted(4), Twice(norm), plain, nn.Sequential(norm, nn.ReLU()), nn.Sequential(), Zero(4)):
        assert last_norm(module) is None


@pytest.mark.parametrize(
    ("parent", "edge", "learns"),
    [
        ((0, 3, 0, 0, 0, 3), 3, True),  # node 3 has another input
        ((3, 0, 0, 1, 0, 0), 4, True),  # node 1 was computed for nothing before
        ((0, 0, 3, 1, 3, 1), 0, False),  # node 1 is read through ReLUs only, and has no other input
        ((0, 0, 3, 1, 1, 0), 0, True),  # an identity passes it on to node 3
        ((0, 0, 1, 1, 3, 1), 0, True),  # and here two of them
        ((0, 0, 1, 0, 1, 1), 0, False),  # to a node that is otherwise zero
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


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_space
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


@each_space
def test_the_shared_weights_get_the_same_gradient_and_the_addition_learns(space):
    learning = 0
    for parent in parents(space):
        network = trained(space, parent)
        expected = gradients(network)
        for child in additions(space, parent):
            grown = grow(space, parent, network, child)
            got = gradients(grown)
            for name, gradient in expected.items():
                assert torch.allclose(got[name], gradient, rtol=0, atol=1e-12), name
            torch.optim.SGD(grown.parameters(), lr=0.1).step()
            moved = any(norm.weight.abs().max() > 1e-12 for norm in silenced(space, parent, child, grown))
            constant = not any(expected[name].any() for name in FIRST & expected.keys())
            assert moved or constant
            learning += moved
    assert learning >= 4


def silenced(space, parent, child, grown):
    """The last norms of what was added."""
    before = dict(space.network(parent).named_modules())
    zeros = [path for path, module in before.items() if isinstance(module, Zero)]
    added = [path for path in zeros if not isinstance(grown.get_submodule(path), Zero)]
    return [last_norm(grown.get_submodule(path)) for path in added]


def test_every_place_of_a_repeated_decision_is_silenced():
    parent, child = (3, 0, 1, 0, 4, 2), (3, 3, 1, 0, 4, 2)
    space = load("nasbench201", width=4, cells=2, classes=5)
    grown = grow(space, parent, trained(space, parent), child)
    norms = silenced(space, parent, child, grown)
    assert len(norms) == 3 * 2  # stages, cells in each
    assert all(not norm.weight.any() and not norm.bias.any() for norm in norms)
    assert all(norm.weight.requires_grad for norm in norms)


def test_growing_can_be_repeated_and_leaves_the_parent_as_it_was():
    genotype = (1, 1, 0, 0, 0, 1)
    network = first = trained(CELLS, genotype).eval()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    for _ in range(3):
        child = additions(CELLS, genotype)[-1]
        network, genotype = grow(CELLS, genotype, network, child), child
    assert additions(CELLS, genotype) == []
    assert torch.equal(network(images()), first(images()))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in first.state_dict().items())


# -- what cannot be grown ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "child",
    [
        (3, 0, 1, 0, 4, 2),  # itself
        (3, 1, 1, 0, 4, 2),  # an identity adds to the output
        (3, 4, 1, 0, 4, 2),  # so does a pool
        (3, 3, 1, 3, 4, 2),  # two additions
        (3, 3, 1, 0, 4, 3),  # an addition and a change
        (0, 0, 1, 0, 4, 2),  # less
    ],
)
def test_what_is_no_addition_is_refused(child):
    parent = (3, 0, 1, 0, 4, 2)
    assert not is_addition(CELLS, parent, child)
    with pytest.raises(SpaceError, match=r"is no addition to .*wanted one decision for no connection"):
        grow(CELLS, parent, trained(CELLS, parent), child)


def test_genotypes_of_another_space_are_refused():
    for pair in [((0,) * 5, (3,) * 6), ((0,) * 6, (0, 0, 0, 0, 0, 9))]:
        with pytest.raises(SpaceError):
            is_addition(CELLS, *pair)


def test_a_network_of_another_architecture_is_refused():
    parent, child = (3, 0, 1, 0, 4, 2), (3, 3, 1, 0, 4, 2)
    for other in [(2, 0, 1, 0, 4, 2), (3, 0, 1, 0, 4, 0), child]:
        with pytest.raises(SpaceError, match=r"the weights given and those of .* differ in \['"):
            grow(CELLS, parent, trained(CELLS, other), child)


def test_a_place_where_the_option_is_something_else_makes_it_no_addition():
    def build(choose):
        layers = [choose.op("a", {"none": lambda: Zero(3), "op": op}) for op in (conv, nn.Identity)]
        return nn.Sequential(*map(Residual, layers), Head(3))

    def conv():
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    space = Space("places", build)
    assert space.trace.roles == {"a": {"none": "zero", "op": "op"}}
    assert additions(space, (0,)) == []
    with pytest.raises(SpaceError, match="no addition"):
        grow(space, (0,), space.network((0,)), (1,))


# -- evolution --------------------------------------------------------------------------------------------


def history(*genotypes):
    return [Trial(i, g, 1, "done", {"val_acc": i / 100}) for i, g in enumerate(genotypes)]


def test_evolution_draws_additions():
    past = history((1, 2, 3, 4, 1, 2), (3, 0, 1, 0, 4, 2))
    searcher = RegularizedEvolution(2, 2, morphism=1.0)
    drawn = {searcher.ask(CELLS, past, rng(seed)) for seed in range(40)}
    assert drawn == set(additions(CELLS, past[-1].genotype))


def test_evolution_mutates_as_usual_where_nothing_new_can_be_added():
    parent = (3, 0, 1, 0, 4, 2)
    for past in (history((0,) * 6, (1, 2, 3, 4, 1, 2)), history(*additions(CELLS, parent), parent)):
        child = RegularizedEvolution(2, 2, morphism=1.0).ask(CELLS, past, rng())
        assert child not in {trial.genotype for trial in past}
        assert child in CELLS.neighbours(past[-1].genotype)


def test_the_share_of_additions():
    past = history((1, 2, 3, 4, 1, 2), (3, 0, 1, 0, 4, 2))
    grown = set(additions(CELLS, past[-1].genotype))
    searcher = RegularizedEvolution(2, 2, morphism=0.5)
    drawn = [searcher.ask(CELLS, past, rng(seed)) for seed in range(400)]
    by_chance = len(grown) / len(CELLS.neighbours(past[-1].genotype))
    assert np.mean([g in grown for g in drawn]) == pytest.approx(0.5 + 0.5 * by_chance, abs=0.1)


@pytest.mark.parametrize("morphism", [-0.1, 1.1, float("nan")])
def test_an_impossible_share_is_refused(morphism):
    with pytest.raises(ConfigError, match=r"evolution: morphism is .*, but must be in \[0, 1\]"):
        RegularizedEvolution(morphism=morphism)
