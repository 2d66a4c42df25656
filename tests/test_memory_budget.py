"""The memory budget: what gives first, that it then fits, and what is said when nothing does."""

import dataclasses

import one_stage
import pytest
import torch

from nas.data.loading import load_task
from nas.errors import ConfigError, Stopped
from nas.oneshot import memory_budget
from nas.oneshot.diagnostics import Examiner
from nas.oneshot.memory_budget import Change, _probe, fit, measured_needs
from nas.oneshot.methods import METHODS, Method
from nas.oneshot.progressive import Progressive
from nas.oneshot.search import Search
from nas.space.loading import load
from nas.training.memory_estimate import peak_memory

SPACE = load(one_stage.PATH, width=8)
TASK = load_task("digits").reduced(200)
METHOD = Method("test", weights=dataclasses.replace(Method().weights, batch=64))


def measured(method):
    """Peak bytes of real steps and of an eigenvalue after them, supernet included."""
    with peak_memory(torch.device("cpu")) as peak:
        search = Search(SPACE, TASK, method, seed=0)
        for _ in range(2):
            search.advance()
        Examiner().eigenvalue(search)
    return peak.bytes


@pytest.fixture(scope="module", autouse=True)
def _probed_once():
    """A probe takes a second, and these tests ask for the same ones again and again."""
    known = {}

    def probe(space, task, method, images):
        key = space.name, repr(method), images
        if key not in known:
            known[key] = _probe(space, task, method, images)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_budget, "_probe", probe)
        yield


@pytest.fixture(scope="module")
def needs():
    return measured_needs(SPACE, TASK, METHOD)


@pytest.mark.parametrize("batch", [16, 64])
def test_the_probe_foretells_real_steps(needs, batch):
    real = measured(dataclasses.replace(METHOD, weights=dataclasses.replace(METHOD.weights, batch=batch)))
    assert needs(batch) == pytest.approx(real, rel=0.05)


def test_what_fits_is_left_alone(needs):
    change, needed = fit(SPACE, TASK, METHOD, needs(64))
    assert change == Change(64) and needed == needs(64)
    assert change.of(METHOD) == METHOD and change.words(METHOD) == []


def test_the_batch_gives_first_and_the_learning_rate_follows(needs):
    change, _ = fit(SPACE, TASK, METHOD, needs(20))
    assert change == Change(16)
    changed = change.of(METHOD).weights
    assert (changed.batch, changed.lr) == (16, METHOD.weights.lr / 4)
    (words,) = change.words(METHOD)
    assert "64 -> 16" in words and "0.025 -> 0.00625" in words
    # Ranks that divide a batch need less each.
    assert fit(SPACE, TASK, METHOD, needs(32), ranks=2)[0] == Change(64)


def test_then_precision_then_checkpointing_then_channels_then_paths(needs):
    seen, budget = [], needs(16)
    while True:
        try:
            change, needed = fit(SPACE, TASK, METHOD, budget - 1)
        except ConfigError as error:
            assert "test needs at least" in str(error) and "narrower" in str(error)
            break
        assert needed < budget
        seen.append(change)
        budget = needed
    assert seen[0].precision == "bfloat16" and not seen[0].checkpointing
    order = [("bfloat16", False, 0, False), ("bfloat16", True, 0, False), ("bfloat16", True, 2, False)]
    order += [("bfloat16", True, 4, False), ("bfloat16", True, 0, True)]
    kinds = [(c.precision, c.checkpointing, c.parts, c.samples_one_path) for c in seen]
    assert kinds == sorted(kinds, key=order.index) and len(set(kinds)) >= 3
    assert measured(seen[-1].of(METHOD)) == pytest.approx(budget, rel=0.15, abs=2**18)


def test_methods_keep_what_they_are_made_of():
    """Progressive stages keep their channels, perturbed mixtures their options."""
    method = dataclasses.replace(METHODS["sdarts-rs"](), staging=Progressive(keep=(1.0, 0.5)))
    with pytest.raises(ConfigError, match=r"a step of sdarts-rs needs at least 0.[1-9]"):
        fit(load("toy", width=8), TASK, method, 1000)


def test_a_deeper_stage_is_foretold_too():
    staging = Progressive(keep=(1.0, 0.4), depth=(1.0, 3.0), anew=True)
    method = dataclasses.replace(METHOD, staging=staging)
    search = Search(SPACE, TASK, method, seed=0)
    search.enter(1)
    search.supernet.keep([(2, 3)] * 6)  # the convolutions
    search.advance()
    with peak_memory(torch.device("cpu")) as peak:
        search.advance()
    assert peak.bytes <= measured_needs(SPACE, TASK, method)(64)


def test_it_can_be_stopped_between_measurements():
    asked = iter([False, True])
    with pytest.raises(Stopped, match="memory of a step"):
        fit(SPACE, TASK, METHOD, 1000, stop=lambda: next(asked))
    assert next(asked, None) is None
