"""Fresh trainings of the best and of the baselines: who is taken, and what survives kills."""

import itertools

import numpy as np
import pytest
import torch
from jobs import SMALL, timeless

from nas.data.loading import load_task
from nas.errors import NoModelError, Stopped
from nas.evaluate.trained import Trained
from nas.files.folder import prepare_folder
from nas.run.comparison import SEARCH, rerank
from nas.run.config import make_config
from nas.run.preparation import prepare
from nas.space.graph import architecture_hash
from nas.study.study import Study

TASK = load_task("digits")
A, B, C = (2, 2, 2), (2, 0, 2), (0, 0, 1)


def job(folder, *, stop=None, **settings):
    values = {"space": "toy", "method": "evolution", **SMALL, "repeats": 2, "top_k_epochs": 10, **settings}
    return prepare(make_config(values), prepare_folder(folder), task=TASK, stop=stop)


def scripted(monkeypatch, accuracies):
    """Trainings whose accuracies are given by architecture, their networks being right that often."""

    def call(self, trial, rng):
        if trial.genotype not in accuracies:
            raise ValueError("broken")
        found = accuracies[trial.genotype]
        self.judge(trial, found)
        return {"val_acc": found, "params": 1.0, "macs": 1.0, "seed": float(rng.integers(2**30))}

    def judged(network, task, split):
        return 0.0, torch.arange(len(split)) < network * len(split)

    monkeypatch.setattr(Trained, "__call__", call)
    monkeypatch.setattr("nas.run.comparison.judged", judged)


# -- the trainings ---------------------------------------------------------------------------------------


def test_the_first_choice_of_the_search_is_compared_and_the_best_is_taken(tmp_path, monkeypatch):
    scripted(monkeypatch, {A: 0.5, B: 0.9, C: 0.5})
    found = rerank(job(tmp_path), [A, B], {"random": C})
    assert (found.best, found.found_by) == (B, SEARCH)
    assert (found.metrics["first_val_acc"], found.metrics["rerank_val_acc"]) == pytest.approx((0.5, 0.9))
    assert found.metrics["random_delta"] == 0
    assert found.statements[-1] == (
        "another candidate of the search is taken, of validation accuracy 0.9000 in fresh trainings; "
        "the first choice has 0.5000"
    )


def test_a_failing_candidate_is_skipped(tmp_path, monkeypatch):
    scripted(monkeypatch, {B: 0.2, C: 0.1})
    verdict = rerank(job(tmp_path), [A, B], {"random": C})
    assert (verdict.best, verdict.found_by) == (B, SEARCH)
    assert verdict.metrics["random_delta"] == pytest.approx(0.1)


def test_when_everything_fails_the_reason_is_said(tmp_path, monkeypatch):
    scripted(monkeypatch, {})
    with pytest.raises(NoModelError, match=r"all 3 candidates failed:\n  \d+ x error: ValueError: broken"):
        rerank(job(tmp_path), [A, B], {"random": C})


# -- rivals ----------------------------------------------------------------------------------------------


def test_a_baseline_that_does_better_is_taken(tmp_path, monkeypatch):
    scripted(monkeypatch, {A: 0.5, B: 0.3, C: 0.9})
    verdict = rerank(job(tmp_path), [A, B], {"random": B, "largest": C})
    assert (verdict.best, verdict.found_by) == (C, "largest")
    assert verdict.metrics["largest_delta"] == pytest.approx(-0.4)
    assert verdict.metrics["largest_p"] < 0.001
    better, worse, *_ = verdict.statements
    assert better.startswith(
        "the first choice of the search is better than that of random search at equal cost: +20"
    )
    assert worse.startswith(
        "the first choice of the search is worse than the largest of the random ones: -40"
    )


@pytest.mark.parametrize("luckiest", ["search", "largest"])
def test_nothing_is_taken_before_random_searchs_for_a_lucky_training(tmp_path, monkeypatch, luckiest):
    scripted(monkeypatch, {A: 0.61 if luckiest == "search" else 0.5, B: 0.6, C: 0.61})
    rivals = {"random": B, "largest": C} if luckiest == "largest" else {"random": B}
    verdict = rerank(job(tmp_path), [A], rivals)
    assert (verdict.best, verdict.found_by) == (B, "random")
    assert "is not significantly better than that of random search" in verdict.statements[-1]


def test_what_auto_found_need_only_be_better(tmp_path, monkeypatch):
    """By a hundredth here, which is no standard error; the same is not enough for another method."""
    scripted(monkeypatch, {A: 0.61, B: 0.6})
    for method, best in (("auto", A), ("guided", B)):
        verdict = rerank(job(tmp_path / method, method=method), [A], {"default": B})
        assert verdict.best == best
    scripted(monkeypatch, {A: 0.59, B: 0.6})
    assert rerank(job(tmp_path / "worse", method="auto"), [A], {"default": B}).best == B


def test_an_isomorphic_rival_is_the_same_architecture(tmp_path, monkeypatch):
    settings = {"width": 4, "cells": 1, "in_channels": 1, "classes": 10}
    first, second = (3, 0, 0, 0, 3, 0), (0, 3, 0, 0, 0, 3)
    made = job(tmp_path, space="nasbench201", space_settings=settings)
    assert architecture_hash(made.space, first) == architecture_hash(made.space, second)
    scripted(monkeypatch, {first: 0.5, second: 0.9})
    verdict = rerank(made, [first], {"random": second})
    assert (verdict.best, verdict.found_by) == (first, SEARCH)
    assert verdict.statements == (
        "the first choice of the search is that of random search at equal cost, too",
    )
    assert (verdict.metrics["random_delta"], verdict.metrics["random_p"]) == (0, 1)
    assert {t.genotype for t in Study.read(tmp_path, "rerank", made.space)} == {first}


def test_the_constraints_come_before_the_accuracy(tmp_path, monkeypatch):
    scripted(monkeypatch, {A: 0.9, B: 0.3})
    plain = Trained.__call__
    monkeypatch.setattr(
        Trained,
        "__call__",
        lambda self, t, rng: {**plain(self, t, rng), "val_loss": 5.0 if t.genotype == A else 1.0},
    )
    assert rerank(job(tmp_path, constraint="val_loss<=2"), [A, B], {}).best == B


# -- predictions -----------------------------------------------------------------------------------------


def test_the_comparison_is_of_the_networks_that_were_trained(tmp_path):
    made = job(tmp_path, top_k_epochs=2)
    verdict = rerank(made, [A], {"largest": B})
    trials = Study.read(tmp_path, "rerank", made.space)
    for t in trials:
        with np.load(tmp_path / "checkpoint" / "rerank" / f"scores-{t.number}.npz") as data:
            assert data["scores"].dtype == bool
            assert data["scores"].mean() == pytest.approx(t.metrics["val_acc"])
    own, other = ([t.metrics["val_acc"] for t in trials if t.genotype == g] for g in (A, B))
    assert verdict.metrics["largest_delta"] == pytest.approx(np.mean(own) - np.mean(other))


def test_a_stopped_comparison_goes_on_to_the_same_end(tmp_path):
    def compared(folder, stop=None):
        return rerank(job(folder, stop=stop, top_k_epochs=2, repeats=1), [A], {"largest": C})

    asked = itertools.count()
    expected = compared(tmp_path / "a", lambda: next(asked) < 0)
    asks = next(asked)
    for part in (asks // 3, asks // 2):
        left = iter([False] * part)
        with pytest.raises(Stopped):
            compared(tmp_path / "b", lambda left=left: next(left, True))
    found = compared(tmp_path / "b")
    assert timeless(found.metrics) == timeless(expected.metrics)
    assert (found.best, found.statements) == (expected.best, expected.statements)
