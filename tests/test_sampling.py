"""Which paths a step trains: strict fairness exact, uniform even in the mean, the sandwich's extremes."""

import pytest
import torch
from torch import nn

from nas.data.task import load_task
from nas.errors import ConfigError
from nas.oneshot.path_training import (
    SAMPLINGS,
    Sandwich,
    Sharing,
    StrictlyFair,
    UniformSampling,
    extremes,
    train_shared,
)
from nas.oneshot.supernet import Supernet
from nas.seeding import rng
from nas.space.cost import cost
from nas.space.loading import load
from nas.space.ops import candidates
from nas.space.space import Space
from nas.training.recipe import Recipe

NB201 = load("nasbench201", width=4, cells=1, in_channels=1)
DARTS = load("darts", width=4, cells=3, in_channels=1)
SHAPE = (1, 8, 8)
TASK = load_task("digits").reduced(96)


def uneven():
    """Decisions of two, three and five options."""

    def build(choose):
        names = ["skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "max_pool_3x3"]
        layers = [choose.op(str(n), candidates(names[:n], 2, 2)) for n in (2, 3, 5)]
        return nn.Sequential(
            nn.Conv2d(1, 2, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10)
        )

    return Space("uneven", build)


def counts(space, sampling, steps, *, seed):
    """How often each option of each decision is trained in the first steps, `[O]` for each decision."""
    found = [[0] * len(d.options) for d in space.decisions]
    for step in range(steps):
        for genotype in sampling.paths(space, rng(seed, "path", step), SHAPE):
            for row, option in zip(found, genotype, strict=True):
                row[option] += 1
    return found


def test_strict_fairness_trains_every_option_exactly_equally_often():
    for steps in (1, 2, 7, 40):
        assert counts(NB201, StrictlyFair(), steps, seed=5) == [[steps] * 5] * 6


def test_strict_fairness_with_unequal_decisions_is_fair_within_a_step():
    found = counts(uneven(), StrictlyFair(), 30, seed=0)
    assert [sum(row) for row in found] == [150] * 3
    assert found[2] == [30] * 5
    # Five draws in blocks of two or three: no option is ever more than one ahead within a step.
    assert all(abs(a - b) <= 30 for row in found for a in row for b in row)
    for step in range(20):
        paths = StrictlyFair().paths(uneven(), rng(0, "path", step), SHAPE)
        for i, options in enumerate((2, 3, 5)):
            often = [sum(p[i] == o for p in paths) for o in range(options)]
            assert max(often) - min(often) <= 1


def test_uniform_sampling_is_even_in_the_mean_only():
    found = counts(NB201, UniformSampling(), 2000, seed=0)
    assert all(abs(n - 400) < 80 for row in found for n in row)
    assert len({n for row in found for n in row}) > 1


def test_fairness_needs_a_space_without_forbidden_combinations():
    with pytest.raises(ConfigError, match=r"strict fairness.*use sampling uniform"):
        StrictlyFair().check(DARTS)
    with pytest.raises(ConfigError, match="strict fairness"):
        train_shared(
            Supernet(DARTS),
            TASK,
            Recipe(epochs=1, batch=32, lr=0.1, weight_decay=0),
            seed=0,
            sampling=StrictlyFair(),
        )


def test_the_extremes_are_the_largest_and_smallest_of_all():
    largest, smallest = extremes(NB201, SHAPE)
    macs = [cost(NB201, g, SHAPE).macs for g in (largest, smallest)]
    assert largest == (3,) * 6 and macs[1] == min(cost(NB201, (o,) * 6, SHAPE).macs for o in range(5))
    for _ in range(30):
        assert macs[1] <= cost(NB201, NB201.sample(rng(_)), SHAPE).macs <= macs[0]


def test_the_sandwich_is_between_the_extremes():
    paths = Sandwich(random=2).paths(NB201, rng(1), SHAPE)
    assert tuple(paths[:2]) == extremes(NB201, SHAPE) and len(paths) == 4


def test_the_extremes_of_a_space_with_rules_are_valid():
    def alike(decisions, scores):
        return (int(sum(scores).argmax()),) * len(decisions)

    space = Space("alike", NB201.build, alike)
    assert extremes(space, SHAPE) == ((3,) * 6, extremes(NB201, SHAPE)[1])


def test_several_paths_move_the_weights_by_their_mean_gradient():
    recipe = Recipe(epochs=1, batch=96, lr=0.1, weight_decay=0.0, momentum=0.0, nesterov=False, crop=False)
    task = load_task("digits").reduced(192)

    def moved(paths):
        torch.manual_seed(0)
        supernet = Supernet(NB201).train()
        before = [w.detach().clone() for w in supernet.weights()]

        class Given(UniformSampling):
            def paths(self, space, rng, image_shape):
                return paths

        train_shared(supernet, task, recipe, seed=0, sampling=Given())
        return [b - w.detach() for b, w in zip(before, supernet.weights(), strict=True)]

    one, two = [(3,) * 6], [(2, 1, 3, 3, 0, 4)]
    for a, b, both in zip(moved(one), moved(two), moved(one + two), strict=True):
        torch.testing.assert_close(both, (a + b) / 2, atol=1e-5, rtol=1e-4)


def test_in_the_sandwich_others_learn_from_the_largest():
    """With labels that say nothing to them, the smaller paths still follow the largest one's predictions."""
    recipe = Recipe(epochs=1, batch=48, lr=0.01, weight_decay=0.0)

    def loss(sampling):
        torch.manual_seed(0)
        supernet = Supernet(NB201).train()
        return train_shared(supernet, TASK, recipe, seed=0, sampling=sampling).train_loss[0]

    class Apart(Sandwich):
        distils = False

    taught, labelled = Sandwich(), Apart()
    object.__setattr__(labelled, "distils", False)
    assert loss(taught) != loss(labelled)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_every_sampling_trains_and_repeats_itself(name):
    recipe = Recipe(epochs=1, batch=32, lr=0.05, weight_decay=1e-4)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        supernet = Supernet(NB201).train()
        train_shared(supernet, TASK, recipe, seed=4, sampling=Sharing(sampling=name).sampler)
        results.append([w.detach().clone() for w in supernet.weights()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "fiar"}, "no sampling 'fiar'; did you mean 'fair'"),
        ({"splits": -1}, "splits is -1"),
        ({"calibration": 1}, "calibration 1"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Sharing(**change)


def test_a_sandwich_has_no_negative_filling():
    with pytest.raises(ConfigError, match="random is -1, but must be at least 0"):
        Sandwich(random=-1)
