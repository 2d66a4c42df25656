"""Shared weights: which paths a step trains and what it moves, resumption, and what paths score on them."""

import dataclasses
import functools
import itertools

import pytest
import torch
from nested import nested_space
from torch import nn
from trainings import train_shared

from nas.data.loading import load_task
from nas.errors import ConfigError, Stopped
from nas.oneshot import path_training
from nas.oneshot.path_training import SAMPLINGS, sandwich, score, strictly_fair
from nas.oneshot.supernet import Supernet
from nas.seeding import rng, torch_rng
from nas.space.cost import cost
from nas.space.loading import load
from nas.space.mixed_op import MixedOp
from nas.space.ops import candidates
from nas.space.space import Space
from nas.training.checkpoint import Checkpoints
from nas.training.evaluate import evaluate
from nas.training.recipe import Recipe

NB201 = load("nasbench201", width=4, cells=1, in_channels=1)
DARTS = load("darts", width=4, cells=3, in_channels=1)
TOY = load("toy", width=4)
SHAPE = (1, 8, 8)
TASK = load_task("digits").reduced(96)
RECIPE = Recipe(epochs=4, batch=16, lr=0.05, weight_decay=0.1)


def uneven():
    """Decisions of two, three and five options."""

    def build(choose):
        names = ["skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "max_pool_3x3"]
        layers = [choose.op(str(n), candidates(names[:n], 2, 2)) for n in (2, 3, 5)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10)]
        return nn.Sequential(nn.Conv2d(1, 2, 1), *layers, *head)

    return Space("uneven", build)


def supernet(space):
    torch.manual_seed(3)
    return Supernet(space).train()


def weights(net):
    return {name: value.detach().clone() for name, value in net.network.named_parameters()}


# -- sampling -----------------------------------------------------------------------------------------


def counts(space, sampling, steps, *, seed):
    """How often each option of each decision is trained in the first steps, `[O]` for each decision."""
    found = [[0] * len(d.options) for d in space.decisions]
    for step in range(steps):
        for genotype in sampling(space, rng(seed, "path", step), SHAPE):
            for row, option in zip(found, genotype, strict=True):
                row[option] += 1
    return found


def test_strict_fairness_trains_every_option_equally_often():
    for steps in (1, 2, 7, 40):
        assert counts(NB201, strictly_fair, steps, seed=5) == [[steps] * 5] * 6
    found = counts(uneven(), strictly_fair, 30, seed=0)
    assert [sum(row) for row in found] == [150] * 3 and found[2] == [30] * 5
    for step in range(20):  # five draws in blocks of two or three
        paths = strictly_fair(uneven(), rng(0, "path", step), SHAPE)
        for i, options in enumerate((2, 3, 5)):
            often = [sum(p[i] == o for p in paths) for o in range(options)]
            assert max(often) - min(often) <= 1


def test_fairness_needs_a_space_without_forbidden_combinations():
    with pytest.raises(ConfigError, match=r"strict fairness.*uniform"):
        strictly_fair(DARTS, rng(0), SHAPE)


def test_the_sandwich_lies_between_the_largest_and_the_smallest_of_all():
    largest, smallest, *others = sandwich(TOY, rng(1), SHAPE, random=2)
    every = [cost(TOY, genotype, SHAPE).macs for genotype in TOY.enumerate()]
    assert [cost(TOY, g, SHAPE).macs for g in (largest, smallest)] == [max(every), min(every)]
    assert largest == (2, 2, 2) and len(others) == 2

    def alike(decisions, scores):
        return (int(sum(scores).argmax()),) * len(decisions)

    assert sandwich(Space("alike", TOY.build, alike), rng(1), SHAPE)[:2] == [largest, smallest]


# -- steps --------------------------------------------------------------------------------------------


def off_path(net, genotype):
    """Names of the weights of all options that an architecture does not choose."""
    path = net.path(genotype)
    return {
        f"{place}.ops.{option}.{name}"
        for place, mixed in net.network.named_modules()
        if isinstance(mixed, MixedOp)
        for option, op in enumerate(mixed.ops)
        if option != path[mixed.decision]
        for name, _ in op.named_parameters()
    }


def moved(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_a_step_moves_exactly_the_weights_of_its_path():
    """Neither weight decay nor momentum moves what a path leaves out; alphas stay as they are."""
    seen = []

    class Recorder(Supernet):
        def forward(self, x, genotype=None):
            seen.append((genotype, weights(self)))
            return super().forward(x, genotype)

    torch.manual_seed(3)
    net = Recorder(TOY).train()
    alphas = net.alphas.detach().clone()
    train_shared(net, TASK, RECIPE, seed=1)
    assert len({genotype for genotype, _ in seen}) > 1
    for (genotype, before), (_, after) in itertools.pairwise(seen):
        assert moved(before, after) == before.keys() - off_path(net, genotype)
    assert torch.equal(alphas, net.alphas)


def test_several_paths_move_the_weights_by_their_mean_gradient(monkeypatch):
    recipe = Recipe(epochs=1, batch=96, lr=0.1, weight_decay=0.0, momentum=0.0, nesterov=False, crop=False)
    task = load_task("digits").reduced(192)

    def moves(paths):
        monkeypatch.setattr(path_training, "SAMPLINGS", {"given": lambda *_: paths})
        net = supernet(NB201)
        before = weights(net)
        train_shared(net, task, recipe, seed=0, sampling="given")
        return [before[name] - value for name, value in weights(net).items()]

    one, two = [(3,) * 6], [(2, 1, 3, 3, 0, 4)]
    for a, b, both in zip(moves(one), moves(two), moves(one + two), strict=True):
        torch.testing.assert_close(both, (a + b) / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_sampling_trains_and_resumes_to_the_bit(tmp_path, sampling):
    recipe = dataclasses.replace(RECIPE, epochs=2)
    whole = supernet(NB201)
    curve = train_shared(whole, TASK, recipe, seed=4, sampling=sampling)
    asked = iter([False] * 4 + [True])
    with pytest.raises(Stopped):
        train_shared(
            supernet(NB201),
            TASK,
            recipe,
            seed=4,
            sampling=sampling,
            checkpoints=Checkpoints(tmp_path),
            stop=lambda: next(asked),
        )
    resumed = supernet(NB201)
    torch.manual_seed(99)
    again = train_shared(resumed, TASK, recipe, seed=4, sampling=sampling, checkpoints=Checkpoints(tmp_path))
    assert again.train_loss == curve.train_loss
    found = resumed.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in whole.state_dict().items())


# -- scores on shared weights --------------------------------------------------------------------------

MORE = load_task("digits").reduced(400)
SPACES = {"nasbench201": NB201, "darts": DARTS, "nested": nested_space(in_channels=1, classes=10)}


@functools.cache
def trained(name):
    """A supernet, which scores do not change."""
    torch.manual_seed(0)
    net = Supernet(SPACES[name]).train()
    train_shared(net, MORE, Recipe(epochs=2, batch=32, lr=0.05, weight_decay=1e-4), seed=0)
    return net


def one_by_one(supernet, genotype, *, seed, calibration):
    network = supernet.extract(genotype).eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # plain means over the batches since the reset
    order = torch.randperm(len(MORE.train), generator=torch_rng(seed, "batchnorm", "order"))[:calibration]
    with torch.no_grad():
        network(MORE.normalise(MORE.train.x[order]))
    return evaluate(network, MORE, MORE.val)


@pytest.mark.parametrize("name", SPACES)
def test_each_architecture_scores_as_its_own_network_would(name):
    """However many images pass at a time."""
    net, draw = trained(name), rng(0)
    for images in (50, 5000, 5000):
        genotype = net.space.sample(draw)
        found = score(net, genotype, MORE, calibration=100, seed=3, images=images)
        loss, accuracy = one_by_one(net, genotype, seed=3, calibration=100)
        assert found[1] == pytest.approx(accuracy, abs=1 / len(MORE.val) + 1e-6)
        assert found[0] == pytest.approx(loss, rel=2e-3)


def test_nothing_of_the_supernet_changes():
    net = trained("nasbench201")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    score(net, (3,) * 6, MORE, seed=0)
    assert net.training and all(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
