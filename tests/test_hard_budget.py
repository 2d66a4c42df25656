"""Whole jobs within a time: they always end with a tested network, and decide the same when resumed."""

import json
import time

import pytest

from nas.budget import timing
from nas.budget.clock import Clock
from nas.budget.shares import Needs
from nas.budget.timing import Ahead
from nas.errors import ConfigError
from nas.job.config import make_config
from nas.job.preparation import prepare
from nas.job.search_run import run
from nas.registry import load
from nas.results.run_record import read_run
from nas.task import load_task
from nas.training.accuracy import FORWARD
from nas.training.resumable import Stopped
from nas.training.team import Alone
from nas.training.train import train
from tests.jobs import SMALL, TINY, Recorder

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
    for name in ("nas.budget.preview_run.network_pace", "nas.budget.timing.network_pace"):
        monkeypatch.setattr(name, lambda *_, **__: 0.1)
    for name in ("gradient_pace", "shared_pace"):
        monkeypatch.setattr(f"nas.budget.preview_run.{name}", lambda *_, **__: 0.1)


def job(folder, budget=1e-6, *, clock=None, settings=TINY, **more):
    stop, progress = more.pop("stop", None), more.pop("progress", None)
    values = {"space": "toy", **settings, "task": "digits", "budget": budget, "pictures": False, **more}
    return run(make_config(values), out=folder, clock=clock, stop=stop, progress=progress)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "evolution", "trials": 3},
        {"method": "random", "trials": 3, "baselines": True},
        {"method": "evolution", "trials": 3, "scheduler": "hyperband", "epochs": 2},
        {"method": "darts"},
        {"method": "is-darts"},
        {"method": "pdarts", "epochs": 6, **SHALLOW},
        {"method": "spos", "trials": 3},
    ],
    ids=lambda s: s["method"] + s.get("scheduler", ""),
)
def test_a_model_is_delivered_however_little_time_there_is(tmp_path, settings):
    result = job(tmp_path, **settings)
    assert 0 <= result.metrics["test_acc"] <= 1 and result.metrics["params"] > 0
    assert result.metrics["estimated_seconds"] == 1e-6 < result.metrics["job_seconds"]
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "manifest.json").exists()
    assert not (tmp_path / "cells.png").exists()


def test_the_phases_share_the_time_and_what_does_not_fit_is_said(tmp_path):
    progress = Recorder()
    result = job(
        tmp_path,
        30.0,
        clock=Clock(30.0, now=Ticks(0.2)),
        method="evolution",
        trials=99,
        epochs=9,
        baselines=True,
        progress=progress,
    )
    assert 0 < result.metrics["trials"] < 99 and "random_val_acc" not in result.metrics
    said = "\n".join(progress.notes)
    assert "the search ends early" in said and "budget: no time for random search at equal cost" in said


def test_the_last_training_is_compressed_and_not_cut(tmp_path):
    result = job(tmp_path, 30.0, settings=SMALL, method="random", retrain={"epochs": 400})
    assert 1 <= result.metrics["retrain_epochs"] < 400
    record = json.loads((tmp_path / "time.json").read_text())["decided"]
    decided = next(value for name, value in record.items() if name.startswith("retrain"))["value"]
    assert decided["epochs"] == result.metrics["retrain_epochs"]


def test_the_last_training_ends_in_time_for_the_test(tmp_path, monkeypatch):
    """As a step now takes a second, the test of 359 images will take 2.2, whatever was expected before."""
    monkeypatch.setattr("nas.budget.timing.network_pace", lambda *_, **__: 1.0)
    values = {"space": "toy", **TINY, "task": "digits", "method": "random", "budget": 60.0}
    made, _ = prepare(make_config(values), tmp_path, clock=Clock(60.0, now=Ticks(0.0)))
    last = timing.last_training(made, (0, 0, 0), Ahead(Needs(finish_s=3.0, test_s=40.0), 0.0, 0.0))
    tested_s = FORWARD * 359 / 64
    assert last.left_s() == pytest.approx(57.0 - tested_s)
    again = timing.last_training(made, (0, 0, 0), Ahead(Needs(finish_s=3.0), 0.0, 0.0))
    assert again.left_s() == last.left_s()


def test_a_resumed_job_goes_on_as_it_was_divided(tmp_path):
    asked = iter(range(10**6))
    with pytest.raises(Stopped):
        job(tmp_path, 60.0, settings=SMALL, method="random", stop=lambda: next(asked) > 20)
    before = json.loads((tmp_path / "time.json").read_text())
    result = job(tmp_path, 60.0, settings=SMALL, method="random")
    after = json.loads((tmp_path / "time.json").read_text())
    assert before["decided"].items() <= after["decided"].items() and after["spent_s"] > before["spent_s"]
    assert result.metrics["job_seconds"] > before["spent_s"]


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


def test_without_a_budget_nothing_is_measured_or_written(tmp_path):
    result = job(tmp_path, None, settings=SMALL, method="random")
    assert not (tmp_path / "time.json").exists() and not (tmp_path / "preview.json").exists()
    assert "estimated_seconds" not in result.metrics


def test_several_ranks_have_no_budget(tmp_path):
    class Two(Alone):
        def __init__(self):
            super().__init__()
            self.size = 2

    config = make_config({"space": "toy", "method": "darts", "budget": "1m"})
    with pytest.raises(ConfigError, match="budget is set, but several ranks"):
        prepare(config, tmp_path, task=TASK, team=Two())


def test_a_training_whose_time_is_over_keeps_what_it_has(tmp_path):
    from nas.seeding import rng
    from nas.training.checkpoint import Checkpoints
    from nas.training.recipe import Recipe

    space, recipe = load("toy", width=4), Recipe(epochs=3, batch=20, lr=0.05, weight_decay=0.0)
    left = iter([1.0, 1.0, -1.0])

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

    curve = trained(left_s=lambda: next(left))
    assert len(curve.train_loss) == len(curve.val_acc) == 1
    again = trained(left_s=lambda: pytest.fail("it had ended"))
    assert again == curve


def test_the_estimate_begins_where_the_job_did(tmp_path):
    """Loading libraries and data takes seconds, too, before anything can be measured."""
    clock = Clock(since=time.monotonic() - 1000)
    config = make_config({**SMALL, "space": "toy", "method": "random"})
    found = run(config, out=tmp_path, clock=clock, tell=lambda _: True)
    needed_s = json.loads((tmp_path / "preview.json").read_text())["seconds"]
    assert 1000 < found.metrics["estimated_seconds"] - needed_s < found.metrics["job_seconds"]


def test_a_preview_is_shown_once_and_may_be_declined(tmp_path):
    shown = []

    def tell(found):
        shown.append(found)
        return len(shown) > 1

    config = make_config({**SMALL, "space": "toy", "method": "random", "pictures": False})
    with pytest.raises(Stopped, match="nothing was trained"):
        run(config, out=tmp_path, tell=tell)
    progress = Recorder()
    run(config, out=tmp_path, tell=tell, progress=progress)
    assert len(shown) == 2 and json.loads((tmp_path / "preview.json").read_text())["space"] == "toy"
    assert any("estimated were" in note for note in progress.notes)
    assert timing.FILE == "preview.json"
