"""Whole jobs by gradients and on shared weights: every method, constraints, memory, weights that flow."""

import json

import numpy as np
import one_stage
import pytest
from jobs import TINY, Recorder

import nas
from nas.errors import ConfigError
from nas.run import supernet_phase
from nas.space.cost import cost
from nas.space.latency import LatencyTable
from nas.space.loading import load
from nas.study.study import Study

SMALL = {**TINY, "epochs": 5, "search_images": 160, "space_settings": {"width": 8, "cells": 1}}


def run(tmp_path, method="darts", *, space=one_stage.PATH, progress=None, **settings):
    return nas.search(
        space, "digits", method, out=tmp_path / "run", settings={**SMALL, **settings}, progress=progress
    )


@pytest.mark.parametrize("guard", [True, False])
def test_what_has_more_identities_than_the_guards_allow_is_trained_again_last(tmp_path, monkeypatch, guard):
    skips, others = (1,) * 6, [(2, 3, 2, 3, 0, 3), (2, 3, 2, 3, 2, 2)]
    monkeypatch.setattr(supernet_phase, "_likely", lambda *_: [skips, *others])
    found = run(tmp_path, epochs=1, guard=guard)
    again = {trial.genotype for trial in Study.read(found.folder, "rerank", found.space)}
    assert (skips in again) is not guard


def test_selection_by_perturbation_in_a_job(tmp_path):
    told = Recorder()
    found = run(tmp_path, selection="perturbation", progress=told)
    assert sum(" is " in note and note.startswith("epoch") for note in told.notes) == 6
    assert len(found.history) == 5 + 2


# -- constraints --------------------------------------------------------------------------------------


def test_a_bound_on_costs_is_kept_and_pulls_the_alphas(tmp_path):
    space = load(one_stage.PATH, width=8)
    least, most = (cost(space, (option,) * 6, (1, 8, 8)).params for option in (0, 3))
    bound = round(least + 0.05 * (most - least))
    found = run(tmp_path, constraint=f"params<={bound}", alphas={"lr": 0.1})
    assert cost(space, found.genotype, (1, 8, 8)).params <= bound
    assert all("params" in trial.metrics for trial in found.history)
    free = run(tmp_path / "free", alphas={"lr": 0.1})
    strengths = [np.load(r.folder / "alphas.npz")["strengths"][-1] for r in (found, free)]
    assert strengths[0][:, 3].mean() < strengths[1][:, 3].mean()  # of 3x3 convolutions


def test_a_bound_on_latency_measures_what_each_option_takes(tmp_path):
    told = Recorder()
    found = run(
        tmp_path, constraint="latency_ms<=1000", progress=told, space="toy", space_settings={"width": 4}
    )
    assert any("measuring what each operation adds" in note for note in told.notes)
    table = LatencyTable.read(found.folder / "latency.json")
    assert table.base is not None and len(table.entries) == 9
    assert all("latency_ms" in trial.metrics for trial in found.history)


def test_a_lower_bound_and_a_method_without_alpha_loss_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="only keep costs below a bound"):
        run(tmp_path, constraint="params>=100")
    with pytest.raises(ConfigError, match="val_acc cannot be told from the parts"):
        run(tmp_path, constraint="val_acc<=0.9")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="constraint is set, but method 'is-darts' learns no alphas"):
        run(tmp_path / "other", "is-darts", constraint="params<=100")


# -- memory -------------------------------------------------------------------------------------------


def test_a_memory_budget_is_kept_and_remembered(tmp_path):
    told = Recorder()
    found = run(tmp_path, memory="2MB", epochs=1, progress=told)
    _, note = [note for note in told.notes if note.startswith("memory:")]
    assert "batch 64 -> " in note
    record = json.loads((found.folder / "memory.json").read_text())
    assert record["needed"] <= 2e6 and record["batch"] < 64


# -- weights flow ---------------------------------------------------------------------------------------


def test_a_finished_evolution_seeds_the_alphas(tmp_path):
    earlier = run(tmp_path / "earlier", "random", trials=5, epochs=1)
    best = max(earlier.history, key=lambda t: t.metrics["val_acc"])
    found = run(tmp_path, seed_alphas=str(earlier.folder), epochs=1)
    assert found.history[0].genotype == best.genotype
    with pytest.raises(ConfigError, match="holds no finished trial"):
        run(tmp_path / "none", seed_alphas=str(tmp_path / "nowhere"))


def test_children_begin_with_their_parents_weights(tmp_path):
    found = run(
        tmp_path,
        "evolution",
        trials=8,
        epochs=1,
        warm_start="parent",
        searcher={"population": 4, "morphism": 1.0},
    )
    parents = [t.metrics["inherited_from"] for t in found.history]
    assert max(parents) >= 0 and all(p < t.number for p, t in zip(parents, found.history, strict=True))


def test_a_supernet_warm_starts_what_is_trained_again(tmp_path):
    settings = {"trials": 5, "supernet": {"epochs": 20, "batch": 10, "lr": 0.1}, "epochs": 1}
    warm = run(tmp_path, "spos", warm_start="supernet", **settings)
    cold = run(tmp_path / "cold", "spos", **settings)
    assert warm.genotype in {t.genotype for t in warm.history}
    assert warm.metrics["first_val_acc"] > cold.metrics["first_val_acc"]
