"""Memory that runs out: smaller parts of the same batch, then a failure that later trials learn from."""

import dataclasses
import gc

import numpy as np
import pytest
import torch
from faulty import Hungry, flat
from jobs import SMALL
from torch import nn

import nas
from nas.errors import Stopped, TrialError
from nas.evaluate.trained import Trained
from nas.run.pipeline import search
from nas.training.evaluate import evaluate, judged
from nas.training.loop import Loop, accumulate
from nas.training.memory_estimate import memory_bytes
from nas.training.recipe import Recipe
from nas.training.retry import Retry, last_retry
from nas.types import Trial

DIGITS = nas.load_task("digits")
TASK = DIGITS.reduced(128)
RECIPE = Recipe(epochs=2, batch=32, lr=0.05, weight_decay=1e-4, mixup=0.2, label_smoothing=0.1)
SETTINGS = SMALL | {"space_settings": {}, "epochs": 2, "search_images": 0, "trial": {"lr": 0.2}}
TOTAL = memory_bytes(torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """What is there before the tests is not looked through each time that memory is given back."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def rng(seed=0):
    return np.random.default_rng(seed)


def hungry(most, **settings):
    return flat(sound=lambda: nn.Linear(64, 10), hungry=lambda: Hungry(most, **settings))


# -- the same step in parts ------------------------------------------------------------------------------


def gradients(network, passes):
    loop = Loop(network, TASK, RECIPE, seed=3, split=TASK.train, passes=passes)
    loss = accumulate(loop, loop.begin())
    return loss, [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("passes", [2, 3, 8])
def test_parts_of_a_batch_have_its_gradient(passes):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    loss, whole = gradients(network, 1)
    network.zero_grad()
    parts_loss, parts = gradients(network, passes)
    assert torch.allclose(loss, parts_loss, rtol=1e-5)
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


# -- trials ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "passes"), [(31, 2), (16, 2), (15, 4), (8, 4), (4, 8)])
def test_a_trial_takes_its_batches_in_halves_until_they_fit(caplog, most, passes):
    metrics = Trained(hungry(most), TASK, RECIPE)(Trial(5, (1,), 2), rng())
    assert metrics["passes_per_step"] == passes
    assert (
        f"trial 5: out of memory while training at batch 32 (at {__file__.rsplit('/', 2)[0]}" in caplog.text
    )
    assert f"tried again with batches in {passes} parts" in caplog.text
    whole = Trained(hungry(32), TASK, RECIPE)(Trial(5, (1,), 2), rng())
    assert "passes_per_step" not in whole
    assert metrics["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-4)


class Later(nn.Linear):
    """Runs out of memory at whole batches, from the tenth training batch on, as on a device that fills up."""

    count = 0

    def forward(self, x):
        if self.training and not x.is_meta:
            Later.count += 1
            if Later.count >= 6 and len(x) > 16:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def test_a_training_goes_on_from_its_checkpoint_in_smaller_parts(tmp_path):
    Later.count = 0
    recipe = dataclasses.replace(RECIPE, epochs=4)
    metrics = Trained(flat(a=lambda: Later(64, 10)), TASK, recipe, folder=tmp_path)(Trial(0, (0,), 4), rng())
    assert metrics["passes_per_step"] == 2
    # The five steps before, of which one was lost, the one that failed, and twice the four that were left.
    assert Later.count == 5 + 1 + 2 * 4
    assert metrics["epochs_trained"] == 4


def test_a_killed_training_goes_on_in_the_same_parts(tmp_path):
    trial, asked = Trial(0, (1,), 2), iter([False] * 3 + [True])
    whole = Trained(hungry(8), TASK, RECIPE)(trial, rng())
    with pytest.raises(Stopped):
        Trained(hungry(8), TASK, RECIPE, folder=tmp_path, stop=lambda: next(asked))(trial, rng())
    assert last_retry(tmp_path / "trial-0") == Retry(passes=4)
    assert Trained(hungry(8), TASK, RECIPE, folder=tmp_path)(trial, rng()) == whole


# -- how lack of memory is told --------------------------------------------------------------------------


# -- evaluation ------------------------------------------------------------------------------------------


def test_evaluation_takes_smaller_batches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), Hungry(100, training=False))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    plain.load_state_dict({k.replace("start", ""): v for k, v in network.state_dict().items()})
    found, wanted = (evaluate(net, DIGITS, DIGITS.val) for net in (network, plain))
    assert found == pytest.approx(wanted, rel=1e-6)
    assert network[1].seen[:5] == [512, 256, 128, 64, 64]
    assert sum(n for n in network[1].seen if n <= 100) == len(DIGITS.val)
    assert torch.equal(*(judged(net, DIGITS, DIGITS.val)[1] for net in (network, plain)))


# -- what is learned of it -------------------------------------------------------------------------------


def sizes():
    """Four options of growing feature maps, of which the last two never fit."""
    options = {
        f"{kept}": (lambda kept=kept: Hungry(10**6 if kept < 3000 else 0, kept=kept))
        for kept in (10, 1000, 4000, 8000)
    }

    def build(choose):
        act = choose.op("act", {name: nn.Identity for name in "abc"})
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), choose.op("body", options), act)

    return nas.Space("sizes", build)


def test_a_search_learns_from_one_failure_and_resumes_with_what_it_learned(tmp_path):
    settings = SETTINGS | {"trials": 6, "baselines": True}
    result = search(sizes(), DIGITS, "random", out=tmp_path / "whole", settings=settings)
    reasons = {t.genotype: t.reason for t in result.history if t.state == "failed"}
    trained = [r for r in reasons.values() if r.startswith("oom: out of memory")]
    assert 1 <= len(trained) <= 2  # the largest may come first, and teaches nothing of the one below it
    large = [t.genotype[0] for t in result.history if t.genotype[0] >= 2]
    assert len(large) <= 2 + 1, "the searcher keeps below what failed"
    assert result.failures["oom"] == len(reasons) == result.metrics["failed_oom"]
    calls = 0

    def stop():
        nonlocal calls
        calls += 1
        return calls % 70 == 0

    for _ in range(100):
        try:
            parts = search(sizes(), DIGITS, "random", out=tmp_path / "parts", settings=settings, stop=stop)
            break
        except Stopped:
            continue
    key = [(t.genotype, t.state, t.reason, dict(t.metrics)) for t in result.history]
    assert [(t.genotype, t.state, t.reason, dict(t.metrics)) for t in parts.history] == key
    assert calls > 70


# -- the last training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "words"), [("darts", "searching at batch"), ("spos", "training at batch")]
)
def test_a_supernet_without_memory_is_an_error_that_says_what_to_do(tmp_path, method, words):
    def build(choose):
        act = choose.op("act", {"tanh": nn.Tanh, "relu": nn.ReLU})
        return nn.Sequential(nn.Flatten(), Hungry(4), act)

    settings = {"epochs": 1, "search_images": 200, "baselines": False}
    with pytest.raises(TrialError, match=f"out of memory while {words}.*use a smaller batch") as caught:
        search(nas.Space("net", build), DIGITS, method, out=tmp_path, settings=settings)
    assert caught.value.reason == "oom"
