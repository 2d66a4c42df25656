"""A supernet is all of its networks: one-hot it is each of them, mixed the weighted sum of its options."""

import copy
import functools
import itertools
from functools import partial

import numpy as np
import pytest
import surface
import torch
import torch.nn.functional as F
from small_spaces import cell, chain, depths
from torch import nn

import nas

SPACES = {
    "darts": partial(nas.load, "darts", width=4, cells=3, classes=3, in_channels=1),
    "nasbench201": partial(nas.load, "nasbench201", width=4, cells=1, classes=3, in_channels=1),
    "by hand": partial(cell, classes=3),
    "a chain": chain,
}
each_space = pytest.mark.parametrize("name", SPACES)


def images(count=4, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64), torch.arange(count) % 3


def step(run, parameters, *, seed):
    """One step of plain SGD; returns the loss before it."""
    x, y = images(seed=seed)
    loss = F.cross_entropy(run(x), y)
    own = [p for p in parameters if p.requires_grad]
    found = torch.autograd.grad(loss, own, allow_unused=True)
    with torch.no_grad():
        for p, gradient in zip(own, found, strict=True):
            if gradient is not None:
                p.sub_(0.05 * gradient)
    return loss.item()


@functools.cache
def _moved(name):
    torch.manual_seed(0)
    supernet = nas.Supernet(SPACES[name]()).double()
    for seed in range(2):
        step(supernet, supernet.parameters(), seed=seed)
    return supernet


def moved(name):
    """A supernet in float64 a few steps away from where it was initialised."""
    return copy.deepcopy(_moved(name))


def same(a, b):
    return torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, training) for name in SPACES for training in (True, False) if training or name != "darts"],
)
def test_a_one_hot_supernet_is_the_stand_alone_network_with_its_weights(name, training):
    """In what both answer, and in what a step of training makes of both."""
    space = SPACES[name]()
    for genotype in surface.genotypes(space, 1 if name == "darts" else 3):
        shared = moved(name).train(training)
        surface.prefer_only(shared, genotype)
        network = shared.extract(genotype).train(training)
        x, _ = images(seed=9)
        alone = copy.deepcopy(network)
        assert same(copy.deepcopy(shared)(x), alone(x))
        losses = [
            step(shared, shared.weights(), seed=4),
            step(partial(surface.logits, network), network.parameters(), seed=4),
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        # The running statistics of both have moved as well, where batch-norms were in training.
        assert same(shared.eval()(x), network.eval()(x))
        assert not same(network(x), alone.eval()(x))


@pytest.mark.parametrize("name", ["nasbench201", "by hand", "a chain"])
def test_the_shared_weights_fit_a_network_built_from_nothing(name):
    space = SPACES[name]()
    supernet = moved(name).eval()
    for genotype in surface.genotypes(space, 3, seed=1):
        network = space.network(genotype).double().eval()
        missing, unexpected = network.load_state_dict(supernet.extract(genotype).state_dict(), strict=False)
        # Norms beside alphas have no scale and shift; a fresh network's are 1 and 0.
        assert not unexpected and all(key.endswith((".weight", ".bias")) for key in missing)
        surface.prefer_only(supernet, genotype)
        x, _ = images(seed=9)
        assert same(network(x), supernet(x))


@each_space
def test_one_path_of_a_supernet_is_that_network_whatever_the_alphas(name):
    space = SPACES[name]()
    supernet = moved(name).eval()
    x, _ = images(seed=9)
    answers = []
    for genotype in surface.genotypes(space, 3, seed=2):
        answers.append(supernet(x, genotype))
        assert same(answers[-1], supernet.extract(genotype)(x))
    assert not all(same(a, b) for a, b in itertools.combinations(answers, 2))


def test_extracted_weights_are_a_copy():
    supernet = moved("by hand").eval()
    x, _ = images()
    before = supernet(x)
    network = supernet.extract((3, 2, 3, 1, 2, 3))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    assert torch.equal(supernet(x), before)


class Scaled(nn.Module):
    """A weight of its own on every pixel."""

    def __init__(self, seed):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x):
        return x * self.weight


def test_a_mixture_is_the_sum_of_all_options_by_the_softmax_of_the_alphas():
    """Two decisions one after the other, written out by hand."""

    def build(choose):
        options = {f"{i}": partial(Scaled, i) for i in range(3)}
        return nn.Sequential(choose.op("first", options), choose.op("second", options), nn.Flatten())

    supernet = nas.Supernet(nas.Space("scaled", build)).double()
    rows = [np.array([0.3, -1.0, 0.9]), np.array([2.0, 0.0, 0.5])]
    surface.prefer(supernet, rows)
    x, _ = images()
    wanted = x
    for row in rows:
        weights = np.exp(row) / np.exp(row).sum()
        wanted = sum(w * Scaled(i).double()(wanted) for i, w in enumerate(weights))
    for training in (True, False):
        assert same(supernet.train(training)(x), wanted.flatten(1))


def test_a_node_of_a_mixed_cell_is_the_sum_over_its_edges():
    """Of the mean of an identity and no connection: half of each earlier node."""

    def build(choose):
        options = nas.candidates(("skip_connect", "none"), 1, 1)
        return nn.Sequential(
            nas.Cell("cell", 1, 3, lambda i, j: choose.op(f"{i}->{j}", options)), nn.Flatten()
        )

    supernet = nas.Supernet(nas.Space("halves", build)).double()
    surface.prefer(supernet, [np.zeros(2)] * 6)
    x, _ = images()
    nodes = [x]
    for _ in range(3):
        nodes.append(0.5 * sum(nodes))
    assert same(supernet(x), nodes[-1].flatten(1))


@each_space
def test_the_alphas_choose_what_the_projection_prefers(name):
    space = SPACES[name]()
    supernet, draw = nas.Supernet(space), np.random.default_rng(0)
    for _ in range(5):
        rows = [draw.normal(size=len(d.options)) for d in space.decisions]
        surface.prefer(supernet, rows)
        softmax = [np.exp(row) / np.exp(row).sum() for row in rows]
        assert supernet.genotype() == space.nearest(softmax)


def test_shared_weights_are_judged_on_the_validation_split_by_the_path_of_each_architecture():
    """In a space without batch-norm, whose statistics would be measured anew for each."""

    def build(choose):
        options = {f"{i}": partial(Scaled, i) for i in range(3)}
        body = [choose.op(name, options) for name in ("first", "second")]
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(64, 3))

    space, task = nas.Space("scaled", build), surface.blobs()
    torch.manual_seed(0)
    supernet = nas.Supernet(space)
    judge, found = nas.Inherited(supernet, task), set()
    for number, genotype in enumerate(space.enumerate()):
        metrics = judge(nas.Trial(number, genotype), np.random.default_rng(number))
        with torch.no_grad():
            answers = supernet.extract(genotype)(task.normalise(task.val.x)).argmax(1)
        assert metrics["val_acc"] == pytest.approx((answers == task.val.y).float().mean().item(), abs=1e-6)
        found.add(metrics["val_acc"])
    assert len(found) > 3


def test_a_space_of_plain_values_has_no_supernet_and_says_of_which():
    with pytest.raises(nas.SpaceError, match="depth"):
        nas.Supernet(depths())


@pytest.mark.parametrize(
    ("name", "settings"),
    [("toy", {}), ("darts", {"cells": 3}), ("nasbench101", {"stacks": 1})],
)
def test_the_bundled_spaces_keep_all_promises(name, settings):
    space = nas.load(name, width=8, in_channels=1, **settings)
    nas.check_space(space, torch.randn(2, 1, 8, 8), samples=1)


def test_a_build_that_is_another_network_in_a_supernet_is_found_out():
    """Only one that counts its parameters can tell, and would search something that nobody trains."""

    def build(choose):
        op = choose.op("first", nas.candidates(("nor_conv_1x1", "nor_conv_3x3"), 1, 1))
        many = sum(p.numel() for p in op.parameters()) > 12
        return nn.Sequential(op, nn.ReLU() if many else nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))

    with pytest.raises(nas.SpaceError, match="supernet"):
        nas.check_space(nas.Space("two faces", build), torch.randn(4, 1, 8, 8), samples=8)


def test_batched_execution_gives_what_the_plain_one_gives(tmp_path):
    """The same search and training, but for rounding."""
    runs = {}
    for execution in ("plain", "batched"):
        result = surface.search(tmp_path / execution, "darts", execution=execution, retrain={"epochs": 1})
        runs[execution] = [surface.metrics(t) for t in result.history], surface.weights(result.folder)
    (plain, one), (batched, other) = runs.values()
    assert [set(m) for m in plain] == [set(m) for m in batched]
    for a, b in zip(plain, batched, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(one[name].float(), other[name].float(), rtol=1e-3, atol=1e-4), name
