"""Fresh trainings of the best and of the baselines: who is taken, and what survives kills."""

import json
import time

import numpy as np
import pytest
import torch
from jobs import SMALL, TINY, Recorder, journal, outcome
from killing import run_killed

from nas.errors import NoModelError
from nas.evaluation.evaluators import Trained
from nas.files.folders import prepare_folder
from nas.graph import architecture_hash
from nas.job.config import make_config
from nas.job.preparation import prepare
from nas.job.rerank import SEARCH, rerank
from nas.job.search_run import search
from nas.registry import load
from nas.results.result import load_result
from nas.study import Study
from nas.task import load_task
from nas.training.resumable import Stopped

TASK = load_task("digits")
A, B, C = (2, 2, 2), (2, 0, 2), (0, 0, 1)


def job(folder, *, space=None, name="toy", stop=None, **settings):
    values = {"space": name, "method": "evolution", **SMALL, "seeds": 2, "top_k_epochs": 10, **settings}
    if space is not None:
        values["space_settings"] = {}
    return prepare(make_config(values), prepare_folder(folder), space=space, task=TASK, stop=stop)[0]


def scripted(monkeypatch, accuracies, *, failing=()):
    """Trainings whose accuracies are given by architecture, their networks being right that often."""

    def call(self, trial, rng):
        if trial.genotype in failing:
            raise ValueError("broken")
        accuracy = accuracies[trial.genotype]
        found = accuracy[trial.number % len(accuracy)] if isinstance(accuracy, tuple) else accuracy
        self.judge(trial, found)
        return {"val_acc": found, "params": 1.0, "macs": 1.0, "seed": float(rng.integers(2**30))}

    def predictions(network, task, split):
        wrong = torch.arange(len(split)) >= network * len(split)
        return split.y + wrong.long()

    monkeypatch.setattr(Trained, "__call__", call)
    monkeypatch.setattr("nas.job.rerank.predictions", predictions)


# -- the trainings ---------------------------------------------------------------------------------------


def test_every_architecture_is_trained_once_for_each_seed_and_no_seed_is_that_of_the_search(tmp_path):
    result = search(
        "toy", TASK, "evolution", out=tmp_path, settings=SMALL | {"seeds": 3, "epochs": 1, "top_k_epochs": 1}
    )
    again = Study.read(tmp_path, "rerank", result.space)
    genotypes = {t.genotype for t in again}
    assert [sum(t.genotype == g for t in again) for g in genotypes] == [3] * len(genotypes)
    before = {t.genotype: t.metrics["val_loss"] for t in result.history}
    losses = [t.metrics["val_loss"] for t in again]
    assert len(set(losses)) == len(losses)
    assert not set(losses) & set(before.values())
    assert result.metrics["rerank_seeds"] == 3


def test_means_over_the_seeds_decide(tmp_path, monkeypatch):
    scripted(monkeypatch, {A: (0.9, 0.3, 0.3), B: 0.6})
    found = rerank(job(tmp_path, seeds=3), [A, B], {})
    assert (found.best, found.found_by) == (B, SEARCH)
    assert found.metrics["rerank_val_acc"] == pytest.approx(0.6)
    means = Study.read(tmp_path, "rerank", load("toy"))
    assert max(means, key=lambda t: t.metrics["val_acc"]).genotype == A


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


def test_the_noise_of_training_seeds_counts(tmp_path, monkeypatch):
    scripted(monkeypatch, {A: (0.5, 0.9, 0.7), B: 0.6})
    found = rerank(job(tmp_path, seeds=3), [A], {"random": B})
    assert found.metrics["random_delta"] == pytest.approx(0.1, abs=0.01)
    assert found.metrics["random_delta_low"] < -0.05
    assert found.metrics["random_p"] > 0.3


def test_a_single_candidate_without_rivals_is_not_trained_again(tmp_path):
    verdict = rerank(job(tmp_path), [A], {})
    assert (verdict.best, verdict.found_by, verdict.metrics, verdict.statements) == (A, SEARCH, {}, ())
    assert not (tmp_path / "study.log").exists()


def test_a_failing_candidate_is_skipped(tmp_path, monkeypatch):
    scripted(monkeypatch, {B: 0.2, C: 0.1}, failing=[A])
    verdict = rerank(job(tmp_path), [A, B], {"random": C})
    assert (verdict.best, verdict.found_by) == (B, SEARCH)
    assert verdict.metrics["random_delta"] == pytest.approx(0.1)


def test_a_failing_rival_is_not_compared(tmp_path, monkeypatch):
    scripted(monkeypatch, {A: 0.2}, failing=[C])
    verdict = rerank(job(tmp_path), [A], {"random": C})
    assert (verdict.best, verdict.statements) == (A, ())
    assert not [name for name in verdict.metrics if name.startswith("random")]


def test_where_all_candidates_fail_the_baseline_is_taken(tmp_path, monkeypatch):
    scripted(monkeypatch, {C: 0.2}, failing=[A, B])
    verdict = rerank(job(tmp_path), [A, B], {"random": C})
    assert (verdict.best, verdict.found_by, verdict.statements) == (C, "random", ())


def test_when_everything_fails_the_reason_is_said(tmp_path, monkeypatch):
    scripted(monkeypatch, {}, failing=[A, B, C])
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


def test_a_job_whose_baseline_did_better_says_so(tmp_path, monkeypatch):
    notes = Recorder()
    monkeypatch.setattr("nas.job.rerank._first_like", lambda job, rival, candidates: rival)
    monkeypatch.setattr("nas.job.search_phase.finalists", lambda history, goals: [t for t in history[:1]])
    settings = SMALL | {
        "baselines": True,
        "trials": 3,
        "epochs": 3,
        "retrain": {"epochs": 1},
        "search_images": 400,
    }
    result = search("toy", TASK, "evolution", out=tmp_path, settings=settings, progress=notes)
    written = json.loads((tmp_path / "baselines.json").read_text())
    accuracies = {SEARCH: result.metrics["rerank_val_acc"]} | {
        name: result.metrics[f"{name}_val_acc"] for name in ("random", "largest", "default")
    }
    assert accuracies[written["found_by"]] == max(accuracies.values()) or written["found_by"] == "default"
    said = [note for note in notes.notes if "did better and is taken" in note]
    assert len(said) == (written["found_by"] not in (SEARCH, "default"))


def test_an_isomorphic_rival_is_the_same_architecture(tmp_path, monkeypatch):
    settings = {"width": 4, "cells": 1, "in_channels": 1, "classes": 10}
    first, second = (3, 0, 0, 0, 3, 0), (0, 3, 0, 0, 0, 3)
    made = job(tmp_path, name="nasbench201", space_settings=settings)
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
    made = job(tmp_path)
    verdict = rerank(made, [A], {"largest": B})
    trials = Study.read(tmp_path, "rerank", made.space)
    for t in trials:
        with np.load(tmp_path / "checkpoint" / "rerank" / f"hits-{t.number}.npz") as data:
            assert data["hits"].dtype == bool
            assert data["hits"].mean() == pytest.approx(t.metrics["val_acc"])
    own, other = ([t.metrics["val_acc"] for t in trials if t.genotype == g] for g in (A, B))
    assert verdict.metrics["largest_delta"] == pytest.approx(np.mean(own) - np.mean(other))


def test_a_stopped_comparison_goes_on_to_the_same_end(tmp_path):
    expected, limit, stops = rerank(job(tmp_path / "a"), [A, B], {"largest": C}), 1, 0
    while True:
        left = [False] * limit
        try:
            found = rerank(
                job(tmp_path / "b", stop=lambda left=left: left.pop() if left else True),
                [A, B],
                {"largest": C},
            )
            break
        except Stopped:
            limit, stops = limit + 1, stops + 1
    assert stops > 3
    assert {k: v for k, v in found.metrics.items() if "seconds" not in k} == {
        k: v for k, v in expected.metrics.items() if "seconds" not in k
    }
    assert (found.best, found.statements) == (expected.best, expected.statements)


def test_trainings_whose_predictions_are_gone_are_repeated(tmp_path):
    """Changed data clear the checkpoints."""
    expected = rerank(job(tmp_path), [A], {"largest": B})
    for path in (tmp_path / "checkpoint" / "rerank").iterdir():
        path.unlink()
    found = rerank(job(tmp_path), [A], {"largest": B})
    assert (found.best, found.statements) == (expected.best, expected.statements)
    assert found.metrics == expected.metrics


# -- whole jobs, killed ----------------------------------------------------------------------------------

COMPARED = {"baselines": True, "seeds": 2, "pictures": True}
KILLED = {
    "evolution": ("evolution", SMALL | COMPARED | {"searcher": {"population": 2}}),
    "halving": (
        "evolution",
        SMALL | COMPARED | {"trials": 6, "epochs": 3, "eta": 2, "scheduler": "successive-halving"},
    ),
    "darts": ("darts", TINY | COMPARED | {"epochs": 2}),
}


def whole(folder, name):
    method, settings = KILLED[name]
    search("toy", "digits", method, out=folder, settings=settings)


def compared(folder):
    return json.loads((folder / "baselines.json").read_text())


@pytest.mark.parametrize("name", ["evolution", "halving"])
def test_a_killed_job_compares_like_an_uninterrupted_one(tmp_path, name):
    start = time.perf_counter()
    whole(tmp_path / "a", name)
    longest = 0.2 * (time.perf_counter() - start)  # five of them last less than the whole
    run_killed(whole, tmp_path / "b", name, kills=5, longest_s=min(longest, 0.6), seed=name)
    expected, found = load_result(tmp_path / "a"), load_result(tmp_path / "b")
    assert outcome(found) == outcome(expected)
    assert compared(tmp_path / "b") == compared(tmp_path / "a")
    for label, history in expected.baselines.items():
        assert [(t.genotype, t.metrics) for t in found.baselines[label]] == [
            (t.genotype, t.metrics) for t in history
        ]


def test_a_killed_differentiable_job_ends_with_one_consistent_comparison(tmp_path):
    """How many random trials equal its seconds depends on the machine; all else does not."""
    whole(tmp_path / "a", "darts")
    run_killed(whole, tmp_path / "b", "darts", kills=5, longest_s=0.5, seed=1)
    expected, found = load_result(tmp_path / "a"), load_result(tmp_path / "b")
    assert outcome(found)["history"] == outcome(expected)["history"]
    both = [Study.read(tmp_path / name, "random", found.space) for name in "ab"]
    shorter = min(map(len, both))
    assert shorter >= 1
    assert [t.metrics for t in both[0][:shorter]] == [t.metrics for t in both[1][:shorter]]
    assert compared(tmp_path / "b")["choices"].keys() == {"default", "random", "largest"}
    assert len(journal(tmp_path / "b")) > 0
