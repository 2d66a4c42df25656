import dataclasses
import itertools

import pytest
import torch

from nas.data.task import load_task
from nas.errors import Stopped
from nas.oneshot.path_training import train_shared
from nas.oneshot.supernet import Supernet
from nas.seeding import rng
from nas.space.loading import load
from nas.space.mixed_op import MixedOp
from nas.training.checkpoint import Checkpoints
from nas.training.recipe import Recipe

TASK = load_task("digits").reduced(64)
SPACE = load("toy", width=4)
RECIPE = Recipe(epochs=4, batch=16, lr=0.05, weight_decay=0.1)


def supernet(space=SPACE):
    torch.manual_seed(3)
    return Supernet(space).train()


def trained(net, recipe=RECIPE, **more):
    train_shared(net, TASK, recipe, seed=1, **more)
    return net


def weights(net):
    return {name: value.detach().clone() for name, value in net.network.named_parameters()}


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
    recipe = dataclasses.replace(RECIPE, epochs=1, batch=64)
    net = supernet()
    before = weights(net)
    trained(net, recipe)
    resting = off_path(net, SPACE.sample(rng(1, "path", 0)))
    assert resting
    assert moved(before, weights(net)) == before.keys() - resting


def test_weight_decay_and_momentum_leave_alone_what_a_path_leaves_out():
    seen = []

    class Recorder(Supernet):
        def forward(self, x, genotype=None):
            seen.append((genotype, weights(self)))
            return super().forward(x, genotype)

    torch.manual_seed(3)
    net = trained(Recorder(SPACE).train())
    assert len({genotype for genotype, _ in seen}) > 1
    for (genotype, before), (_, after) in itertools.pairwise(seen):
        assert not moved(before, after) & off_path(net, genotype)


def test_alphas_stay_as_they_are():
    net = supernet()
    before = [alpha.detach().clone() for alpha in net.alphas]
    trained(net)
    assert all(torch.equal(a, b) for a, b in zip(before, net.alphas, strict=True))


def test_the_outcome_depends_on_the_arguments_alone():
    first = weights(trained(supernet()))
    net = supernet()
    torch.manual_seed(99)
    second = weights(trained(net))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_training_goes_on_to_the_bit(tmp_path):
    recipe = Recipe(epochs=3, batch=8, lr=0.05, weight_decay=1e-3)
    whole = supernet()
    curve = train_shared(whole, TASK, recipe, seed=1)
    asked = iter([False] * 5 + [True])
    with pytest.raises(Stopped):
        trained(supernet(), recipe, checkpoints=Checkpoints(tmp_path), stop=lambda: next(asked))
    resumed = supernet()
    again = train_shared(resumed, TASK, recipe, seed=1, checkpoints=Checkpoints(tmp_path))
    assert again.train_loss == curve.train_loss
    found = resumed.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, found[name]), name
