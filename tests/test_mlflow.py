"""Runs that MLflow keeps in a database: one for each of ours, however often it is resumed."""

from pathlib import Path

import numpy as np
import pytest
from jobs import TINY

import nas
from nas.results.run_record import read_run
from nas.show.tracking.mlflow import MLflow
from nas.show.tracking.tracker import FINAL, Point, TrackedRun

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own
RUN = TrackedRun("run-1", Path("run"), {"space": "toy", "seed": "0"})


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'runs.db'}"


def points(*steps):
    alphas, options = {"normal/0->1": np.array([0.25, 0.75])}, {"normal/0->1": ("skip", "conv 3x3")}
    return [Point("search", step, {"val_acc": 0.1 * step}, alphas, options) for step in steps]


def read(uri, name):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs(["1"], f"tags.`nas.run` = '{name}'")
    return client, run


def test_a_resumed_run_is_the_same_one_without_doubles(uri, tmp_path):
    tracker = MLflow(uri)
    assert tracker.begin(RUN) == set()
    tracker.track(points(1, 2))
    tracker.end("stopped")
    again = MLflow(uri)
    assert again.begin(RUN) == {("search", 1), ("search", 2)}
    again.track(points(3))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "metrics.json").write_text("{}")
    again.keep(tmp_path, ["deep/metrics.json"])
    again.end("finished")
    client, run = read(uri, RUN.name)
    history = client.get_metric_history(run.info.run_id, "search/val_acc")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert run.info.status == "FINISHED" and run.data.params["space"] == "toy"
    assert run.data.metrics["alphas/normal/0-_1/conv 3x3"] == 0.75
    assert [file.path for file in client.list_artifacts(run.info.run_id, "deep")] == ["deep/metrics.json"]


def test_a_search_is_tracked(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = TINY | {"mlflow": uri}
    result = nas.search("toy", "digits", "darts", out=tmp_path / "run", settings=settings)
    client, run = read(uri, read_run(result.folder)["run"])
    assert run.data.metrics[f"{FINAL}/test_acc"] == pytest.approx(result.metrics["test_acc"])
    assert "model.safetensors" in {file.path for file in client.list_artifacts(run.info.run_id)}
