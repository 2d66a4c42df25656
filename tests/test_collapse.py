"""A planted collapse: plain DARTS ends in identities only; guards and other methods find the planted cell.

Images show stripes along or across, of random phase and with noise, so that nothing but a 3x3 convolution
tells the classes apart; their brightness is a coin flip. A tenth of the labels are wrong. The supernet does
well with a small share of convolution in every cell, behind which batch-norm restores the scale, and
identities make the rest easier to train: the alphas end up there, and what they stand for alone cannot see
stripes at all.
"""

import dataclasses
from functools import cache

import numpy as np
import pytest
from torch import nn
from trainings import train

from nas.data.loading import task_from_arrays
from nas.oneshot.alpha_optimizer import ExponentiatedGradient
from nas.oneshot.darts_pt import ByPerturbation
from nas.oneshot.early_stopping import Guards
from nas.oneshot.methods import METHODS
from nas.oneshot.progressive import SingleStage
from nas.oneshot.search import search
from nas.space.cell import Cell
from nas.space.ops import candidates
from nas.space.space import Space
from nas.training.evaluate import evaluate
from nas.training.recipe import DARTS_SEARCH

OPTIONS = ("skip_connect", "avg_pool_3x3", "nor_conv_3x3")
SKIP, PLANTED = (0,), (2,)
RECIPE = dataclasses.replace(DARTS_SEARCH, epochs=30, batch=32, lr=0.1, lr_min=0.004, crop=False)


def stripes(count, *, seed, wrong=0.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    wave = np.sign(np.sin((np.arange(8)[None] + rng.integers(0, 4, count)[:, None]) * np.pi / 2 + 0.1))
    images = 40 * np.repeat(wave[:, :, None], 8, axis=2)
    images[labels == 1] = images[labels == 1].transpose(0, 2, 1)
    images += 128 + 25 * rng.choice([-1, 1], count)[:, None, None] + rng.normal(0, 20, images.shape)
    return images.clip(0, 255).astype(np.uint8), np.where(rng.random(count) < wrong, 1 - labels, labels)


@cache
def task():
    """128 images each to train and validate, labels wrong in a tenth; 200 clean ones to test."""
    return task_from_arrays(*stripes(256, seed=0, wrong=0.1), *stripes(200, seed=1), flip=False)


def space(width=16, cells=3):
    def build(choose):
        options = candidates(OPTIONS, width, width)
        return nn.Sequential(
            nn.Conv2d(1, width, 1, bias=False),
            nn.BatchNorm2d(width),
            *[Cell("cell", 1, 1, lambda i, j: choose.op("op", options)) for _ in range(cells)],
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 2),
        )

    return Space("stripes", build)


def made(name, **changes):
    method = METHODS[name]()
    fast = dataclasses.replace(method.update, lr=0.1)
    return dataclasses.replace(method, **{"weights": RECIPE, "update": fast, **changes})


@pytest.mark.parametrize("option", range(3))
def test_only_the_planted_cell_sees_stripes(option):
    network = space().network((option,))
    train(network, task(), dataclasses.replace(RECIPE, epochs=15), seed=0)
    _, accuracy = evaluate(network, task(), task().test)
    assert accuracy > 0.9 if (option,) == PLANTED else accuracy < 0.65


def test_without_guards_darts_collapses():
    outcome = search(space(), task(), made("darts"), seed=0)
    assert outcome.selected[0] == SKIP
    health = outcome.epochs[-1].health
    assert health.skip_share == 1.0 and health.gap > 0.25
    eigenvalues = [e.health.eigenvalue for e in outcome.epochs]
    assert max(eigenvalues) > 1.3 * eigenvalues[0]


@pytest.mark.parametrize(
    "method",
    [
        made("darts", selection=ByPerturbation(tune=0.1)),
        made("is-darts"),
        made("drnas", staging=SingleStage()),
        made("gaea", staging=SingleStage(), edge_norm=False, warmup=0.0, update=ExponentiatedGradient(3.0)),
    ],
    ids=["perturbation", "is-darts", "drnas", "gaea"],
)
def test_other_methods_find_the_planted_cell(method):
    assert search(space(), task(), method, seed=0).selected[0] == PLANTED


def test_guards_see_the_collapse_coming_and_do_not_end_there():
    outcome = search(space(), task(), made("darts", guards=Guards()), seed=0)
    assert outcome.selected[0] != SKIP
    assert any("the eigenvalue grew" in event for e in outcome.epochs for event in e.events)
