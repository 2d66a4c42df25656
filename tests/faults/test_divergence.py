"""Losses that are not finite: one more attempt at a lower learning rate, then a failure, never a rank."""

import dataclasses
import json
import math

import numpy as np
import pytest
from faulty import Fragile, flat
from jobs import SMALL, TINY, Recorder, last_job
from torch import nn

import nas
from nas.errors import Stopped, TrialError
from nas.evaluate.multi_fidelity import Laddered
from nas.evaluate.trained import Trained
from nas.run.pipeline import search
from nas.run.retrain import train_final
from nas.searchers.fidelity import parse_ladder
from nas.training.recipe import Recipe
from nas.types import Trial

DIGITS = nas.load_task("digits")
TASK = DIGITS.reduced(128)
TOY = nas.load("toy", width=4)
RECIPE = Recipe(epochs=2, batch=32, lr=0.5, weight_decay=0.0)
HOPELESS = dataclasses.replace(RECIPE, lr=1e30)
SETTINGS = SMALL | {"space_settings": {}}


def rng(seed=0):
    return np.random.default_rng(seed)


def fragile(limit=1.0):
    """Diverges at the recipe's learning rate, and not at a tenth of it."""
    return flat(sound=lambda: nn.Linear(64, 10), fragile=lambda: Fragile(limit))


def test_a_diverging_trial_has_one_more_attempt_at_a_lower_rate(caplog):
    recipe = dataclasses.replace(RECIPE, lr=RECIPE.lr * 0.1)
    metrics = Trained(fragile(), TASK, RECIPE)(Trial(3, (1,), 2), rng())
    assert metrics == {**Trained(fragile(), TASK, recipe)(Trial(3, (1,), 2), rng()), "lr_factor": 0.1}
    assert "trial 3: train: loss or weights are not finite at step 2" in caplog.text
    assert "tried again at 0.1 times the learning rate" in caplog.text


def test_a_trial_that_diverges_again_fails():
    with pytest.raises(TrialError, match=r"not finite .*\(tried again at 0.1 times the") as caught:
        Trained(TOY, TASK, HOPELESS)(Trial(0, (2, 2, 2), 2), rng())
    assert caught.value.reason == "nan"


@pytest.mark.parametrize("steps", [0, 2, 4, 6])
def test_a_second_attempt_resumes_to_the_same_end(tmp_path, steps):
    left = [False] * steps
    whole = Trained(fragile(), TASK, RECIPE)(Trial(0, (1,), 2), rng())
    with pytest.raises(Stopped):
        Trained(fragile(), TASK, RECIPE, folder=tmp_path, stop=lambda: left.pop() if left else True)(
            Trial(0, (1,), 2), rng()
        )
        raise Stopped("ended before the stop")
    assert Trained(fragile(), TASK, RECIPE, folder=tmp_path)(Trial(0, (1,), 2), rng()) == whole
    assert not list(tmp_path.iterdir())


def test_a_diverging_rung_is_trained_again_from_the_first(tmp_path):
    ladder = parse_ladder("epochs=1; epochs=2")

    def climb(folder, limit, lr):
        recipe = dataclasses.replace(RECIPE, lr=lr)
        evaluate = Laddered(fragile(limit), TASK, recipe, ladder, folder)
        return [dict(evaluate(Trial(i, (1,), fidelity), rng())) for i, fidelity in enumerate((1, 3))]

    # It moves further in the second rung than in the first.
    found = climb(tmp_path / "a", 2.7, 0.5)
    sound = climb(tmp_path / "b", math.inf, 0.05)
    assert "lr_factor" not in found[0] and found[1]["lr_factor"] == 0.1
    assert {**sound[1], "lr_factor": 0.1} == found[1]
    assert not [path for path in (tmp_path / "a").rglob("*") if path.suffix == ".safetensors"]


def test_a_diverging_search_ranks_only_what_is_finite(tmp_path):
    result = search(
        flat(a=lambda: Fragile(0.0), b=lambda: nn.Linear(64, 10), c=lambda: nn.Linear(64, 10)),
        DIGITS,
        "random",
        out=tmp_path,
        settings=SETTINGS,
    )
    (failed,) = (t for t in result.history if t.state == "failed")
    assert failed.genotype == (0,) and failed.reason.startswith("nan: ")
    assert result.genotype != (0,)
    assert result.failures == {"nan": 1}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["failed_trials"], metrics["failed_nan"]) == (1, 1)


# -- the last training -----------------------------------------------------------------------------------


def final(recipe, folder, limit=1.0, **changes):
    progress = Recorder()
    job, last = last_job(fragile(limit), TASK, recipe, folder, progress=progress, **changes)
    _, metrics = train_final(job, (1,), last)
    return metrics, progress


def test_a_diverging_last_training_begins_again_at_a_lower_rate_and_says_so(tmp_path):
    metrics, progress = final(RECIPE, tmp_path)
    assert metrics["retrain_lr_factor"] == 0.1
    assert "tried again at 0.1 times the learning rate" in progress.notes[0]
    assert [phase[0] for phase in progress.phases] == ["retrain", "retrain"]
    direct, _ = final(dataclasses.replace(RECIPE, lr=0.05), tmp_path / "direct", limit=math.inf)
    assert direct["test_loss"] == metrics["test_loss"] and "retrain_lr_factor" not in direct


# -- supernets -------------------------------------------------------------------------------------------


def supernet_space(limit):
    def build(choose):
        options = {"tanh": nn.Tanh, "relu": nn.ReLU}
        return nn.Sequential(nn.Flatten(), Fragile(limit, 64, 8), choose.op("act", options), nn.Linear(8, 10))

    return nas.Space("supernet", build)


@pytest.mark.parametrize(
    ("method", "settings"),
    [("random", {"evaluator": "shared", "supernet": {"lr": 5.0}}), ("darts", {"search": {"lr": 5.0}})],
)
def test_a_diverging_supernet_has_one_more_attempt(tmp_path, method, settings):
    progress = Recorder()
    base = (SMALL if method == "random" else TINY) | {"space_settings": {}, "search_images": 0}
    result = search(
        supernet_space(8.0), DIGITS, method, out=tmp_path, settings=base | settings, progress=progress
    )
    assert [note for note in progress.notes if "tried again at 0.1 times the learning rate" in note]
    if method == "darts":
        assert {t.metrics["lr_factor"] for t in result.history} == {0.1}


@pytest.mark.parametrize("where", ["search", "retrain"])
def test_divergence_at_any_rate_is_an_error_that_says_what_to_do(tmp_path, where):
    settings = TINY | {where: {"lr": 1e30, "epochs": 2}}
    with pytest.raises(TrialError, match=r"not finite.*lower the learning rate \(tried again at 0.1 times"):
        search("toy", DIGITS, "darts", out=tmp_path, settings=settings)
