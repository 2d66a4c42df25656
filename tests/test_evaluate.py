"""Trials trained alone: what is left behind by those that fail, and by those that are given up early."""

import dataclasses

import numpy as np
import pytest

from nas.data.loading import load_task
from nas.errors import Stopped, TrialError
from nas.evaluate.trained import Trained
from nas.space.loading import load
from nas.training.recipe import Recipe
from nas.types import Trial

TASK = load_task("digits").reduced(128)
TOY = load("toy", width=4)
RECIPE = Recipe(epochs=1, batch=32, lr=0.05, weight_decay=1e-4)


def rng(seed=0):
    return np.random.default_rng(seed)


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


@pytest.mark.parametrize("steps", [1, 8, 11])
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
