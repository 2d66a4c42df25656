import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from nas.data.loading import load_task
from nas.errors import Stopped, TrialError
from nas.evaluate.trained import Trained, affordable
from nas.space.loading import load
from nas.space.space import Space
from nas.training.recipe import Recipe
from nas.types import Trial

TASK = load_task("digits").reduced(128)
TOY = load("toy", width=4)
RECIPE = Recipe(epochs=1, batch=32, lr=0.05, weight_decay=1e-4)


def rng(seed=0):
    return np.random.default_rng(seed)


def chosen(**modules):
    """A space of one decision whose options are ready-made modules after a fixed stem."""

    def build(choose):
        return nn.Sequential(choose.op("body", {k: lambda m=m: m() for k, m in modules.items()}))

    return Space("chosen", build)


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        raise self.error


class Mean(nn.Module):
    """Logits without a single parameter."""

    def forward(self, x):
        return x.mean((1, 2, 3))[:, None].expand(-1, 10)


# -- trained ---------------------------------------------------------------------------------------------


def test_trained_measures_and_counts():
    metrics = Trained(TOY, TASK, RECIPE)(Trial(0, (2, 2, 2), 1), rng())
    assert metrics.keys() == {"val_acc", "val_loss", "train_loss", "params", "macs", "epochs_trained"}
    assert 0 <= metrics["val_acc"] <= 1
    assert metrics["params"] == affordable(TOY, (2, 2, 2), TASK).params


def test_a_failed_trial_leaves_no_checkpoint_behind(tmp_path):
    recipe = dataclasses.replace(RECIPE, lr=1e30)
    for seed in range(2):
        with pytest.raises(TrialError):
            Trained(TOY, TASK, recipe, folder=tmp_path)(Trial(0, (2, 2, 2), 3), rng(seed))
        assert not list(tmp_path.iterdir())

    def judge(trial, network):
        raise ValueError("broken")

    with pytest.raises(TrialError, match="broken"):
        Trained(TOY, TASK, RECIPE, folder=tmp_path, judge=judge)(Trial(0, (2, 2, 2), 1), rng())
    assert not list(tmp_path.iterdir())


# -- trained no further than it is worth ------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 8, 11])
def test_an_early_stopped_trial_goes_on_where_it_was(tmp_path, steps):
    def hopeless(accuracies, epochs):
        return len(accuracies) == 3

    trial, left = Trial(0, (2, 2, 2), 6), [False] * steps
    stop = lambda: left.pop() if left else True  # noqa: E731
    expected = Trained(TOY, TASK, RECIPE)(trial, rng(), should_stop=hopeless)
    with pytest.raises(Stopped):
        Trained(TOY, TASK, RECIPE, folder=tmp_path, stop=stop)(trial, rng(), should_stop=hopeless)
        raise Stopped("ended before the stop")
    resumed = Trained(TOY, TASK, RECIPE, folder=tmp_path)(trial, rng(), should_stop=hopeless)
    assert resumed == expected
    assert resumed["epochs_trained"] == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("reason", "words", "make"),
    [
        ("build", r"images of \(1, 8, 8\) fail", lambda: nn.Conv2d(3, 4, 1)),
        ("build", "build failed", lambda: nn.Conv2d(1, -4, 1)),
        (
            "build",
            r"outputs \(32, 7\), wanted \(32, 10\)",
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 7)),
        ),
        ("no-grad", "no trainable parameter", Mean),
        ("error", "KeyError.*raise self.error", lambda: Raises(KeyError("k"))),
        ("error", "ZeroDivisionError.*raise self.error", lambda: Raises(ZeroDivisionError())),
    ],
)
def test_whatever_is_wrong_with_a_network_fails_its_trial_with_a_reason(reason, words, make):
    with pytest.raises(TrialError, match=words) as caught:
        Trained(chosen(works=Mean, a=make), TASK, RECIPE)(Trial(0, (1,), 1), rng())
    assert caught.value.reason == reason


# -- inherited -------------------------------------------------------------------------------------------
