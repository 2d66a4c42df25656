"""The differentiable search: what an epoch reports, stopping, and resuming after any kill to the bit."""

import dataclasses
import itertools
import math
from functools import partial

import numpy as np
import one_stage
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.data.loading import task_from_arrays
from nas.errors import Stopped
from nas.oneshot import search as searching
from nas.oneshot.darts_pt import ByPerturbation
from nas.oneshot.discretize import capped
from nas.oneshot.early_stopping import Guards
from nas.oneshot.methods import METHODS, Method
from nas.oneshot.progressive import Progressive
from nas.oneshot.search import Search, search
from nas.space.loading import load
from nas.space.space import Space
from nas.training.checkpoint import Checkpoints
from nas.training.recipe import DARTS_SEARCH

RECIPE = dataclasses.replace(DARTS_SEARCH, epochs=3, batch=16)


def make_task(*, images=64):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (images, 8, 8), dtype=np.uint8)
    return task_from_arrays(x, np.arange(images) % 3, x[:12], np.arange(12) % 3, flip=False)


def make_space(name="toy", **settings):
    return load(name, **({"width": 4, "classes": 3, "in_channels": 1} | settings))


def run(space=None, *, recipe=RECIPE, order=1, seed=5, images=64, method=None, **options):
    method = method or Method("test", recipe, order=order)
    return search(space or make_space(), make_task(images=images), method, seed=seed, **options)


def assert_same(a, b):
    """The same supernets, weights, alphas and all, at the end of two searches."""
    ours, theirs = a.supernet.state_dict(), b.supernet.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert a.supernet.alive == b.supernet.alive
    assert comparable(a.epochs) == comparable(b.epochs) and a.selected == b.selected


def comparable(epochs):
    """With NaN equal to itself."""
    return [
        {**vars(e), "seconds": 0, "strengths": [s.tolist() for s in e.strengths]}
        | {"health": repr(e.health), "growth": repr(e.growth)}
        for e in epochs
    ]


def moved(epochs):
    """Whether the alphas have moved in each epoch but the first."""
    return [not np.array_equal(a.strengths, b.strengths) for a, b in itertools.pairwise(epochs)]


def watched(monkeypatch, note):
    """Calls `note` with the search at the beginning of every epoch."""
    begin = Search.begin_epoch
    monkeypatch.setattr(Search, "begin_epoch", lambda self: (begin(self), note(self)))


def test_every_epoch_is_reported_and_returned():
    told = []
    outcome = run(on_epoch=told.append)
    epochs = outcome.epochs
    assert [[*map(id, so_far)] for so_far in told] == [[*map(id, epochs[: n + 1])] for n in range(3)]
    assert [e.epoch for e in epochs] == [1, 2, 3]
    for e in epochs:
        assert e.epochs == 3 and e.seconds > 0
        assert 0 <= e.val_score <= 1 and 0 < e.train_loss < 5
        assert all(s.sum() == pytest.approx(1) and len(s) == 3 for s in e.strengths)
        assert e.genotype == tuple(int(s.argmax()) for s in e.strengths)
        assert e.health.entropy > 0.5 and np.isfinite(e.health.eigenvalue)
    assert epochs[-1].genotype == outcome.supernet.genotype() == outcome.selected[0]
    np.testing.assert_array_equal(epochs[-1].strengths, outcome.supernet.strengths())


def test_the_same_seed_gives_the_same_search_and_leaves_the_callers_stream_alone(tmp_path):
    """Also in two pieces; a finished search is not done again."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = run()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    asked, told = iter([False] * 3 + [True]), []
    with pytest.raises(Stopped, match="step 3 of 6"):
        run(checkpoints=Checkpoints(tmp_path), stop=lambda: next(asked))
    two = run(checkpoints=Checkpoints(tmp_path))
    assert_same(one, two)
    again = run(checkpoints=Checkpoints(tmp_path), on_epoch=told.append)
    assert_same(two, again)
    assert told == [] and [e.seconds for e in two.epochs] == [e.seconds for e in again.epochs]


# -- a budget of time ---------------------------------------------------------------------------------


def test_a_spent_budget_makes_the_step_in_progress_the_last(tmp_path):
    outcome = run(left_s=lambda: 0.0, checkpoints=Checkpoints(tmp_path))
    assert [e.epoch for e in outcome.epochs] == [1]
    assert outcome.epochs[0].events == ("the budget is spent",)
    assert_same(run(left_s=lambda: 0.0, checkpoints=Checkpoints(tmp_path)), outcome)


def test_a_spent_budget_still_ends_in_the_methods_own_selection():
    method = Method("test", TEN, selection=ByPerturbation(images=32))
    outcome = run(method=method, left_s=lambda: 0.0)
    assert len(outcome.epochs) == 1 and outcome.epochs[0].events[0] == "the budget is spent"
    assert len(outcome.epochs[0].events) == 4  # and one for each decision
    assert outcome.selected[0] == tuple(o[0] for o in outcome.supernet.alive)


# -- stages -------------------------------------------------------------------------------------------

CELL = {"name": one_stage.PATH, "width": 8}
TEN = dataclasses.replace(RECIPE, epochs=10)


def test_options_drop_out_one_by_one_by_their_fisher_information():
    six = dataclasses.replace(RECIPE, epochs=6)
    outcome = run(make_space(**CELL), method=dataclasses.replace(METHODS["is-darts"](), weights=six))
    assert [len(o) for o in outcome.supernet.alive] == [1] * 6
    assert [len(e.events) for e in outcome.epochs] == [0, 1, 1, 1, 1, 0]
    assert outcome.epochs[1].events == ("stage 2 of 5: 6 options drop out, 24 are left",)
    assert outcome.selected[0] == tuple(o[0] for o in outcome.supernet.alive)
    assert 0 not in outcome.selected[0]
    assert all(np.isnan(e.health.eigenvalue) for e in outcome.epochs)


def test_fresh_stages_begin_anew_and_deeper(monkeypatch):
    """The dropout of identities begins anew where the alphas begin to move, as in the code of P-DARTS."""
    staging = Progressive(
        keep=(1.0, 0.6, 0.4), depth=(1.0, 2.0, 3.0), skip_dropout=(0.0, 0.5, 0.5), anew=True
    )
    dropped = []
    watched(monkeypatch, lambda work: dropped.append(float(work.supernet.skip_dropout)))
    nine = dataclasses.replace(RECIPE, epochs=9)
    method = Method("test", nine, warmup=1 / 3, staging=staging)
    outcome = run(make_space(**CELL), method=method, images=32)
    assert len(outcome.supernet.mixed_ops) == 6 * 3  # of three cells
    assert [len(o) for o in outcome.supernet.alive] == [2] * 6
    losses = [e.train_loss for e in outcome.epochs]
    assert losses[3] > losses[2]  # new weights know nothing
    fade = [0.5 * 2 / 3, 0.5, 0.5 * np.exp(-5 / 3)]
    np.testing.assert_allclose(dropped[:9], [0.0] * 3 + 2 * fade)


# -- guards -------------------------------------------------------------------------------------------


def alarmed(monkeypatch, eigenvalues):
    """Searches whose eigenvalues are given, epoch by epoch."""
    told = iter(eigenvalues)
    real = searching.Examiner.examine

    def examine(self, *args, **known):
        return dataclasses.replace(real(self, *args, **known), eigenvalue=next(told))

    monkeypatch.setattr(searching.Examiner, "examine", examine)


GUARDED = Method("test", TEN, guards=Guards(warmup=0.0, window=0.1, delay=0.1, start=0.1))
ENDING = dataclasses.replace(GUARDED, guards=dataclasses.replace(GUARDED.guards, decay_max=1e-3))
"""One alarm makes weight decay stronger, the next one ends the stage."""


def test_an_alarm_goes_back_and_makes_weight_decay_stronger(monkeypatch):
    alarmed(monkeypatch, [1.0] * 4 + [9.0] + [1.0] * 99)
    outcome = run(method=GUARDED)
    assert [e.epoch for e in outcome.epochs] == [1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    (event,) = outcome.epochs[4].events
    assert "back to epoch 2" in event and "weight decay 0.0003 -> 0.0009" in event
    assert not any(e.events for e in (*outcome.epochs[:4], *outcome.epochs[5:]))


def test_the_last_alarm_ends_its_stage_and_not_what_comes_after(monkeypatch):
    alarmed(monkeypatch, [1.0, 1.0, 1.0, 9.0] * 99)
    method = dataclasses.replace(ENDING, selection=ByPerturbation(tune=0.2, images=32))
    outcome = run(method=method)
    assert [e.epoch for e in outcome.epochs] == [1, 2, 3, 4, 2, 3, 4, 5, 11, 12]
    assert outcome.epochs[7].back == 2 and outcome.epochs[3].back == 1
    assert all(len(options) == 1 for options in outcome.supernet.alive)
    assert outcome.selected[0] == tuple(o[0] for o in outcome.supernet.alive)
    # The alphas chose where the search went back to, and are what likely architectures are drawn from.
    np.testing.assert_array_equal(outcome.strengths, outcome.epochs[4].strengths)
    undone = {outcome.epochs[i].genotype for i in (1, 2, 3, 5, 6, 7)}
    lasting = {outcome.epochs[i].genotype for i in (0, 4, 8, 9)} | {outcome.epochs[4].genotype}
    assert set(outcome.selected) & (undone - lasting - {outcome.selected[0]}) == set()


@pytest.mark.parametrize("parts", [{"guards": Guards(skip_cap=1, ratio=1e9)}, {"skip_cap": 1}, {}])
def test_a_capped_search_has_few_identities(parts):
    """Without guards, as in P-DARTS, nothing but the alphas judges what takes their place."""
    outcome = run(method=Method("test", RECIPE, **parts), prepare=lambda s: s.prefer([(0, 0, 0)] * 200))
    assert outcome.epochs[-1].genotype == (0, 0, 0) and outcome.epochs[-1].health.skip_share == 1.0
    first = outcome.selected[0]
    assert sum(o == 0 for o in first) == (1 if parts else 3)
    if "skip_cap" in parts:
        assert first == capped(outcome.supernet.space, outcome.supernet.strengths(), 1)


@pytest.mark.parametrize("parts", [{"guards": Guards(warmup=0.3, ratio=1e9)}, {"warmup": 0.3}])
def test_alphas_rest_while_the_weights_warm_up(parts):
    assert moved(run(method=Method("test", TEN, **parts)).epochs) == [False, False] + [True] * 7


# -- selection ----------------------------------------------------------------------------------------


def test_selection_by_perturbation_fixes_every_decision_and_tunes_between(monkeypatch):
    recipes = []
    watched(monkeypatch, lambda work: recipes.append(work.loop.recipe))
    outcome = run(method=Method("test", RECIPE, selection=ByPerturbation(tune=1.0)))
    assert [e.epoch for e in outcome.epochs] == [1, 2, 3, 4, 5, 6]
    chosen = [event for e in outcome.epochs for event in e.events]
    assert [len(e.events) for e in outcome.epochs] == [0, 0, 1, 1, 1, 0]
    assert outcome.selected[0] == tuple(o[0] for o in outcome.supernet.alive)
    assert outcome.supernet.space.choices(outcome.selected[0]) == dict(e.split(" is ") for e in chosen)
    # What the alphas prefer is a candidate, too.
    assert outcome.epochs[2].genotype in outcome.selected
    assert len(set(outcome.selected)) == len(outcome.selected)
    assert [(r.lr, r.lr_min) for r in (recipes[0], recipes[-1])] == [
        (0.025, 0.001),
        (pytest.approx(0.0025), 0.001),
    ]


# -- every method -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_resumed_to_the_bit_wherever_it_was_stopped(tmp_path, name):
    """Stopped in the middle of epochs, between stages and during the selection."""
    # Windows that end before the search, and few steps of the adversary.
    own = METHODS[name](**{"steps": 2} if name in ("oles", "sdarts-adv") else {})
    method = dataclasses.replace(
        own,
        weights=dataclasses.replace(RECIPE, epochs=4),
        guards=Guards(),
        selection=ByPerturbation(tune=0.4, images=32) if name == "darts" else None,
        checkpointing=name == "drnas",
    )
    space = make_space(**CELL)
    whole = run(space, method=method)
    for steps in (3, 1, 3, 2, 1000):
        asked = iter([False] * steps + [True] * 9)
        try:
            resumed = run(
                space, method=method, checkpoints=Checkpoints(tmp_path), stop=lambda a=asked: next(a)
            )
        except Stopped:
            continue
        break
    assert_same(resumed, whole)


# -- operations of one's own --------------------------------------------------------------------------


class Attention(nn.Module):
    """Over the pixels of a map."""

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).view_as(x)


class Flash(nn.Module):
    """The same in the library's fast way, which has first derivatives only."""

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)[:, None].contiguous()  # it reads rows that lie together
        found, *_ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(tokens, tokens, tokens)
        return found[:, 0].transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("op", [Attention, Flash])
def test_the_curvature_is_measured_where_operations_can_be_differentiated_twice(op):
    def build(choose):
        convs = [partial(nn.Conv2d, 4, 4, kernel, padding=kernel // 2) for kernel in (1, 3)]
        options = {"one": convs[0], "three": convs[1], "mine": op}
        ops = [choose.op(f"op{i}", options) for i in range(2)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
        return nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), *ops, *head)

    epochs = run(Space("own", build)).epochs
    told = [event for epoch in epochs for event in epoch.events]
    assert len(epochs) == 3 and len(told) == (op is Flash), "once is enough"
    assert all(math.isfinite(epoch.health.eigenvalue) == (op is Attention) for epoch in epochs)
    assert all("differentiated twice" in event for event in told)
