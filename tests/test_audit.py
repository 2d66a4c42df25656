"""The audit finds what was planted, is silent on what is right, and bears the odd data that people have."""

import importlib.util
import json
import sys
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from nas.__main__ import app
from nas.audit import audit_task, write_audit
from nas.audit.duplicates import groups, near_copies
from nas.audit.images import ImageTable, features, outliers
from nas.audit.labels import confident_joint, prune
from nas.data.exclusions import load_without
from nas.data.loading import task_from_arrays
from nas.data.task import Split
from nas.errors import DataError
from nas.seeding import rng


def shapes(count, *, classes=3, side=10, channels=1):
    """Bars at the angle of their class, each at its own place, with texture: images [N, H, W, C], labels."""
    draw = rng(0, "shapes")
    y = np.arange(count) % classes
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    x = np.empty((count, side, side, channels))
    for i, label in enumerate(y):
        angle = np.pi * label / classes
        across = rows * np.cos(angle) + columns * np.sin(angle) - draw.uniform(-1.5, 1.5)
        bar = np.exp(-((across / draw.uniform(0.8, 1.6)) ** 2))
        x[i] = (bar[..., None] * 180 + draw.uniform(0, 70, (side, side, channels))).clip(0, 255)
    return x.astype(np.uint8), y


def made(count=180, **settings):
    x, y = shapes(count, **settings)
    return task_from_arrays(x, y, classes=[f"c{label}" for label in range(y.max() + 1)])


def tied(x, y, cut):
    """A task of arrays in their order: `cut` images of it for training, then validation, then test."""
    task = task_from_arrays(*shapes(30, side=x.shape[1], classes=3))
    x = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    ends = [0, cut, (cut + len(x)) // 2, len(x)]
    parts = [Split(x[a:b], torch.from_numpy(y[a:b]), torch.arange(a, b)) for a, b in pairwise(ends)]
    return replace(task, train=parts[0], val=parts[1], test=parts[2])


@pytest.fixture(scope="module")
def planted():
    path = Path(__file__).parents[1] / "scripts" / "bench_audit.py"
    spec = importlib.util.spec_from_file_location("bench_audit", path)
    script = sys.modules["bench_audit"] = importlib.util.module_from_spec(spec)  # its dataclass looks it up
    spec.loader.exec_module(script)
    return script.plant(made(360), mislabels=0.05, copies=12, leaks=8, seed=0)


@pytest.fixture(scope="module")
def found(planted):
    return audit_task(planted.task)


def pairs(found, *, leak):
    return {
        (min(pair), max(pair))
        for group in found.groups
        if (len(group.splits) > 1) == leak
        for pair in combinations(group.members, 2)
    }


def test_planted_copies_and_leaks_are_found_and_nothing_else(planted, found):
    copies = pairs(found, leak=False)
    assert planted.exact <= copies <= planted.exact | planted.near
    assert len(copies & planted.near) >= 0.9 * len(planted.near)
    assert pairs(found, leak=True) == planted.leak
    exact = {frozenset(group.members) for group in found.groups if group.exact}
    assert exact == {frozenset(pair) for pair in planted.exact | planted.leak}
    assert {suspect.split for suspect in found.of_kind("leak")} == {"train"}, "a test image stays"


def test_the_share_of_wrong_labels_lies_in_its_interval(planted, found):
    assert found.labels.low < len(planted.wrong) / found.labels.judged < found.labels.high
    suspects = {suspect.origin for suspect in found.of_kind("mislabel")}
    assert len(suspects & planted.wrong) >= 0.8 * max(len(planted.wrong), len(suspects))


def test_contradictory_labels_of_copies_are_named_and_a_large_group_is_whole():
    x, y = shapes(90)
    y[1], x[1] = (y[0] + 1) % 3, x[0]
    table = ImageTable.of(tied(x, y, 60))
    (group,) = groups(table, near_copies(table))
    assert group.classes == ("0", "1") and group.exact and group.origins == (0, 1)
    draw = rng(1, "noise")
    for i in range(2, 25):
        x[i] = (x[0] + draw.normal(0, 0.7, x[0].shape)).clip(0, 255).astype(np.uint8)
    table = ImageTable.of(tied(x, y, 60))
    (group,) = groups(table, near_copies(table))
    assert set(group.members) == set(range(25)) and not group.exact


# The parts


def test_the_joint_counts_what_reaches_the_thresholds():
    """Three of class 0, one of which is sure to be of class 1; the paper's equations by hand."""
    y = np.array([0, 0, 0, 1, 1])
    odds = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    # Thresholds: class 0 (0.9 + 0.8 + 0.1) / 3 = 0.6, class 1 (0.8 + 0.7) / 2 = 0.75.
    joint = confident_joint(y, odds)
    assert np.allclose(joint, [[0.4, 0.2], [0.0, 0.4]])
    assert prune(y, odds, joint).tolist() == [2]
    odds = np.where(np.eye(2)[y] > 0, 0.9, 0.1)
    assert not len(prune(y, odds, confident_joint(y, odds)))


def test_outliers_and_blank_images_are_found():
    x, y = shapes(120)
    x[5] = 77
    x[9] = rng(3, "noise").integers(0, 2, x[9].shape) * 255
    table = ImageTable.of(tied(x, y, 80))
    found = outliers(table, features(table.small, 0))
    assert [suspect.origin for suspect in found][:2] == [5, 9] and len(found) <= 4
    assert found[0].reason == "every pixel has the same value"


# Odd data


def test_eight_images(tmp_path):
    task = made(8, classes=2)
    found = audit_task(task)
    assert found.suspects == () and "fewer than two classes" in found.labels.reason
    assert len(write_audit(found, task, tmp_path)) == 2  # there is nothing to show


def test_one_class_and_classes_missing_in_a_split():
    x, y = shapes(24)
    found = audit_task(tied(x, np.zeros_like(y), 12))
    assert "all images are of one class, so there is nothing to tell apart" in found.remarks
    assert any("has no image of 2 classes: 1, 2" in remark for remark in found.remarks)


def test_a_class_of_one_image_is_not_judged():
    x, y = shapes(61, classes=2)
    y[60] = 2
    found = audit_task(tied(x, y, 40))
    assert found.labels.judged == 60 and "not judged: 2" in found.labels.reason
    assert 60 not in {suspect.origin for suspect in found.of_kind("mislabel")}
    assert found.imbalance == 30


# What is left


def test_names_cannot_break_the_sheet_and_colours_are_shown(tmp_path):
    x, y = shapes(30, channels=3)
    x[1] = x[0]
    task = replace(tied(x, y, 20), classes=("$\\frac{", "\x1b[31m\n" * 30, "ü"))
    assert len(write_audit(audit_task(task), task, tmp_path)) == 3


def test_the_command_collects_every_damaged_file(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    x, y = shapes(60, classes=2)
    for number, (pixels, label) in enumerate(zip(x[..., 0], y, strict=True)):
        place = tmp_path / "data" / f"c{label}" / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(place)
    data = tmp_path / "data"
    for name in ("c0/00.png", "c1/03.png", "c1/05.png"):
        (data / name).write_bytes(b"no image")
    image.fromarray(x[0][:5, :, 0]).save(data / "c0" / "02.png")
    (data / "c1" / "59.png").write_bytes((data / "c0" / "58.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["audit", "folder:data"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "results" / "audit-data" / "audit.json").read_text())
    assert report["suspects"]["corrupt"] == 4
    assert "c0/02.png: it is 10x5 grey" in done.output
    suspects = "results/audit-data/suspects.json"
    listed = json.loads(Path(suspects).read_text())["suspects"]
    corrupt = [suspect["file"] for suspect in listed if suspect["kind"] == "corrupt"]
    assert corrupt == ["c0/00.png", "c0/02.png", "c1/03.png", "c1/05.png"]
    assert {s["file"] for s in listed if s["kind"] in ("leak", "duplicate")} <= {"c0/58.png", "c1/59.png"}

    task = load_without("folder:data", f"{suspects}:corrupt", seed=1)
    assert sum(map(len, task.splits.values())) == len(task.files) == 56
    with pytest.raises(DataError, match=r"3 of 60 images cannot be read"):
        load_without("folder:data", f"{suspects}:leak", seed=0)
    (data / "c0" / "04.png").write_bytes(b"damaged later")
    with pytest.raises(DataError, match=r"does not name 1 file of folder:data .*c0/04.png"):
        load_without("folder:data", suspects, seed=0)
