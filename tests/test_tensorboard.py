"""Event files that TensorBoard itself reads, whole and without doubles after a kill."""

from pathlib import Path

import numpy as np
import pytest
from jobs import TINY

import nas
from nas.show.tracking.tensorboard import TensorBoard
from nas.show.tracking.tracker import FINAL, Point, TrackedRun

pytest.importorskip("tensorboard", reason="needs the extra tensorboard")

RUN = TrackedRun("run-1", Path("run"), {"space": "toy", "seed": "0"})


def points(*steps):
    alphas, options = {"normal/0->1": np.array([0.25, 0.75])}, {"normal/0->1": ("skip", "conv")}
    values = {"val_acc": 0.5, "train_loss": 1.0}
    return [Point("search", step, values, alphas, options) for step in steps]


def read(folder):
    """The events of a folder as TensorBoard has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0}).Reload()


def steps(events, tag):
    return [event.step for event in events.Scalars(tag)]


def test_a_killed_run_leaves_whole_points_and_goes_on_without_doubles(tmp_path):
    tracker = TensorBoard(tmp_path)
    assert tracker.begin(RUN) == set()
    tracker.track(points(1, 2, 3))
    tracker.end("stopped")
    (file,) = (tmp_path / RUN.name).iterdir()
    file.write_bytes(file.read_bytes()[:-10])  # the last point is torn
    again = TensorBoard(tmp_path)
    assert again.begin(RUN) == {("search", 1), ("search", 2), ("settings", 0)}
    assert list((tmp_path / RUN.name).iterdir()) == [file]  # where nothing is new there is no new file
    again.track(points(3, 4))
    again.end("finished")
    events = read(tmp_path / RUN.name)
    assert steps(events, "search/val_acc") == steps(events, "search/train_loss") == [1, 2, 3, 4]
    assert len(events.Tensors("alphas/normal/0->1")) == 4 and len(events.Tensors("settings/asked")) == 1


def test_a_search_is_tracked_in_its_folder(tmp_path):
    settings = TINY | {"tensorboard": True, "pictures": True}
    result = nas.search("toy", "digits", "darts", out=tmp_path / "run", settings=settings)
    (place,) = (result.folder / "tensorboard").iterdir()
    events = read(place)
    tags = events.Tags()
    assert steps(events, "search/val_acc") == [1, 2]
    assert steps(events, "retrain/train_loss") == [1]
    assert events.Scalars(f"{FINAL}/test_acc")[0].value == pytest.approx(result.metrics["test_acc"])
    assert {"search/eigenvalue", "search/alpha_entropy", "rerank/val_acc"} <= set(tags["scalars"])
    assert {f"alphas/{decision.name}" for decision in result.space.decisions} <= set(tags["tensors"])
    assert {"pictures/cells", "pictures/health", "pictures/search"} <= set(tags["images"])
    assert "tfevents" not in (result.folder / "manifest.json").read_text()  # they grow after it is written
