"""Trackers hear every point once, whatever is killed or fails, and a job never waits for them."""

import threading
import time

import numpy as np
import pytest
from jobs import SMALL, TINY

import nas
from nas.cli.app import spelt_out
from nas.errors import ConfigError
from nas.run.config import make_config
from nas.show import tracking as trackers
from nas.show.tracking.tracker import FINAL, Point, TrackedRun, Tracking, of_trials
from nas.types import Trial


class Keeper:
    """A tracker that remembers all, over any number of runs."""

    def __init__(self):
        self.points, self.files, self.runs, self.ends = [], [], [], []

    def begin(self, run):
        self.runs.append(run)
        return {point.key for point in self.points}

    def track(self, points):
        self.points += points

    def keep(self, folder, files):
        self.files += [(folder / name).is_file() for name in files]

    def end(self, status):
        self.ends.append(status)

    def steps(self, series):
        return [point.step for point in self.points if point.series == series]

    def names(self, series):
        return set().union(*(point.values for point in self.points if point.series == series))


class Hanging(Keeper):
    """A tracker whose server never answers."""

    def begin(self, run):
        threading.Event().wait(30)


def points(series, *steps):
    return [Point(series, step, {"loss": 0.5}) for step in steps]


def tracking(tracker, notes, **settings):
    run = TrackedRun("run-1", None, {"space": "toy"})
    return Tracking([tracker], run, note=notes.append, **settings)


def test_a_search_by_gradients_tells_health_and_alphas(tmp_path):
    keeper = Keeper()
    result = nas.search("toy", "digits", "darts", out=tmp_path / "run", settings=TINY, trackers=[keeper])
    assert keeper.steps("search") == [1, 2] and keeper.steps("rerank")[:2] == [0, 1]
    assert len(keeper.points) == len({point.key for point in keeper.points})
    wanted = {"val_acc", "train_loss", "alpha_entropy", "eigenvalue", "skip_share", "seconds"}
    assert wanted <= keeper.names("search")
    point = keeper.points[0]
    assert set(point.alphas) == {decision.name for decision in result.space.decisions}
    assert all(len(row) == len(point.options[name]) for name, row in point.alphas.items())
    assert all(np.isclose(row.sum(), 1) for row in point.alphas.values())


def test_shared_weights_and_a_retraining_tell_every_epoch_and_final_metric_once(tmp_path):
    keeper, other, out = Keeper(), Keeper(), tmp_path / "run"
    found = nas.search("toy", "digits", "spos", out=out, settings=SMALL, trackers=[keeper])
    steps = {series: keeper.steps(series) for series in ("supernet", "search", "retrain", FINAL)}
    assert list(steps.values()) == [[1, 2], [0, 1, 2], [1], [0]]
    assert {"val_acc", "params", "seconds", "failed"} <= keeper.names("search")
    assert {"train_loss", "lr"} <= keeper.names("retrain")
    assert keeper.points[-1].values == found.metrics
    assert len(keeper.files) > 5 and all(keeper.files) and keeper.ends == ["finished"]
    before = len(keeper.points), len(keeper.files)
    nas.search("toy", "digits", "spos", out=out, settings=SMALL, trackers=[keeper])
    assert (len(keeper.points), len(keeper.files)) == before
    settings = {"retrain": {"epochs": 2}}
    nas.retrain(found.folder, "digits", out=tmp_path / "again", settings=settings, trackers=[other])
    assert other.steps("retrain") == [1, 2] and other.steps(FINAL) == [0]


def test_a_tracker_that_hangs_is_not_waited_for():
    notes, begun = [], time.monotonic()
    with tracking(Hanging(), notes, patience_s=0.05) as told:
        for step in range(100):
            told.tell(points("search", step))
    assert time.monotonic() - begun < 25  # the tracker hangs for half a minute
    assert len(notes) == 1 and "did not finish" in notes[0]


def test_running_trials_and_numbers_that_are_none_are_left_out():
    done = Trial(0, (0,), 3, "done", {"val_acc": 0.5, "odd": float("nan")}, cost_s=1.0)
    failed = Trial(1, (0,), 3, "failed", cost_s=2.0)
    told = list(of_trials("search", [done, failed, Trial(2, (0,), 3)]))
    assert [point.values["failed"] for point in told] == [0.0, 1.0]
    assert "odd" not in told[0].values


def test_a_missing_package_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'nas-engine\[mlflow\]'"):
        nas.search("toy", "digits", "random", out=tmp_path / "run", settings=SMALL | {"mlflow": True})
    assert not (tmp_path / "run").exists()


def test_a_password_in_a_uri_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda _: True)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI") as caught:
        trackers.check_trackers(None, "postgresql://me:s3cret@host/db")
    assert "s3cret" not in str(caught.value)


def test_a_switch_may_stand_alone_or_name_a_place():
    kept = [make_config({"tensorboard": given}).tensorboard for given in (True, False, "events")]
    assert kept == ["auto", None, "events"]
    given = ["search", "--tensorboard", "here", "--mlflow"]
    assert spelt_out(given) == ["search", "--tensorboard", "here", "--mlflow=auto"]
