"""Whole jobs within a time: they always end with a tested network, and decide the same when resumed."""

import json
import time

import pytest
from jobs import SMALL, TINY, Recorder
from trainings import train

from nas.data.loading import load_task
from nas.errors import ConfigError, Stopped
from nas.results.run_record import read_run
from nas.run.config import make_config
from nas.run.job import Clock
from nas.run.pipeline import run_job
from nas.run.preparation import prepare
from nas.run.retrain import last_training
from nas.seeding import rng
from nas.space.loading import load
from nas.training.checkpoint import Checkpoints
from nas.training.ddp import Team
from nas.training.recipe import Recipe

TASK = load_task("digits").reduced(200)
SHALLOW = {"space": "nasbench201", "space_settings": {"width": 4, "cells": 1}}
"""A stage of some methods is deeper than the one before."""


class Ticks:
    """A time that goes on by a tick whenever it is asked."""

    def __init__(self, tick_s):
        self.tick_s, self.at = tick_s, 0.0

    def __call__(self):
        self.at += self.tick_s
        return self.at


@pytest.fixture(autouse=True)
def _paced(monkeypatch):
    """Every step is said to take a tenth of a second."""
    paces = ("budget.network_pace", "budget.search_pace", "budget.final_pace", "step_timing.final_pace")
    for name in (*paces, "retrain.final_pace"):
        monkeypatch.setattr(f"nas.run.{name}", lambda *_, **__: 0.1)


def job(folder, budget=1e-6, *, clock=None, settings=TINY, **more):
    stop, progress = more.pop("stop", None), more.pop("progress", None)
    values = {"space": "toy", **settings, "task": "digits", "budget": budget, "pictures": False, **more}
    return run_job(make_config(values), out=folder, clock=clock, stop=stop, progress=progress)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "random", "trials": 3, "baselines": True},
        {"method": "evolution", "trials": 3, "scheduler": "hyperband", "epochs": 2},
        {"method": "is-darts"},
        {"method": "pdarts", "epochs": 6, **SHALLOW},
        {"method": "spos", "trials": 3},
    ],
    ids=lambda s: s["method"] + s.get("scheduler", ""),
)
def test_a_model_is_delivered_however_little_time_there_is(tmp_path, settings):
    result = job(tmp_path, **settings)
    assert 0 <= result.metrics["test_acc"] <= 1 and result.metrics["params"] > 0
    assert min(result.metrics["estimated_seconds"], result.metrics["job_seconds"]) > 0
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "manifest.json").exists()
    assert not (tmp_path / "cells.png").exists()


def test_nothing_is_searched_where_a_dozen_trials_do_not_fit_and_that_is_said(tmp_path):
    progress = Recorder()
    clock = Clock(20.0, now=Ticks(0.1))
    result = job(tmp_path, 20.0, clock=clock, method="evolution", epochs=8, progress=progress)
    assert result.metrics["trials"] == 0 and result.genotype == result.space.default_genotype
    said = "\n".join(progress.notes)
    assert "no time for a search" in said and "the default architecture" in said
    compared = json.loads((tmp_path / "baselines.json").read_text())
    assert compared["found_by"] == "default" and compared["statements"]


def test_the_last_training_follows_its_time(tmp_path):
    """Of 60 s, 12 were gone when it began and 3 are kept, so that after 22.5 more it is half over."""
    values = {"space": "toy", **TINY, "task": "digits", "method": "random", "budget": 60.0, "retrain": {}}
    ticks = Ticks(0.0)
    made = prepare(make_config(values), tmp_path, clock=Clock(60.0, now=ticks))
    ticks.at = 12.0
    last = last_training(made, (0, 0, 0), reserve_s=3.0)
    assert last.elapsed() == 0 and last.recipe.epochs == round(45 / (22 * 0.1))
    ticks.at = 34.5
    assert last.elapsed() == 0.5
    made.clock.hurry(5.0)
    assert last.elapsed() == pytest.approx(22.5 / 24.5)
    ticks.at = 57.0
    assert last.elapsed() == 1
    bound = prepare(make_config(values | {"retrain": {"epochs": 1}}), tmp_path, clock=Clock(60.0, now=ticks))
    assert last_training(bound, (0, 0, 0), reserve_s=3.0).recipe.epochs == 1


def test_a_larger_budget_goes_on_with_the_search(tmp_path):
    with pytest.raises(Stopped):
        job(tmp_path, 1e-6, settings=SMALL, method="random", stop=lambda: stopping(tmp_path))
    result = job(tmp_path, 600.0, settings=SMALL, method="random")
    assert result.metrics["trials"] == 3
    assert read_run(tmp_path)["config"]["budget"] == 1e-6


def stopping(folder):
    """Whether the last training has been decided on."""
    path = folder / "time.json"
    return path.exists() and "retrain" in path.read_text()


def test_without_a_budget_nothing_is_measured(tmp_path):
    result = job(tmp_path, None, settings=SMALL, method="random")
    assert json.loads((tmp_path / "time.json").read_text())["decided"] == {}
    assert not (tmp_path / "preview.json").exists()
    assert "estimated_seconds" not in result.metrics


def test_several_ranks_have_no_budget(tmp_path):
    config = make_config({"space": "toy", "method": "darts", "budget": "1m"})
    with pytest.raises(ConfigError, match="budget is set, but several ranks"):
        prepare(config, tmp_path, task=TASK, team=Team(0, 2))


def test_a_training_whose_time_is_over_keeps_what_it_has(tmp_path):
    space, recipe = load("toy", width=4), Recipe(epochs=3, batch=20, lr=0.05, weight_decay=0.0)
    gone = iter([0.0, 0.3, 0.3, 0.6, 0.6, 1.0])

    def trained(**more):
        return train(
            space.network(space.sample(rng(0))),
            TASK,
            recipe,
            seed=0,
            evaluate_on=TASK.val,
            checkpoints=Checkpoints(tmp_path),
            **more,
        )

    curve = trained(elapsed=lambda: next(gone))
    assert len(curve.train_loss) == len(curve.val_score) == 1
    again = trained(elapsed=lambda: pytest.fail("it had ended"))
    assert again == curve


def test_a_preview_is_shown_once_and_may_be_declined_and_the_estimate_begins_where_the_job_did(tmp_path):
    """Loading libraries and data takes seconds, too, before anything can be measured."""
    shown = []

    def tell(found):
        shown.append(found)
        return len(shown) > 1

    config = make_config({**SMALL, "space": "toy", "method": "random", "pictures": False})
    with pytest.raises(Stopped, match="nothing was trained"):
        run_job(config, out=tmp_path, clock=Clock(since=time.monotonic() - 1000), tell=tell)
    found = run_job(config, out=tmp_path, tell=tell)
    preview = json.loads((tmp_path / "preview.json").read_text())
    assert len(shown) == 2 and preview["space"] == "toy"
    assert 1000 < found.metrics["estimated_seconds"] - preview["seconds"] < found.metrics["job_seconds"]
