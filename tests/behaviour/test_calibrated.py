"""A calibration says which cheap trials rank like long ones, and a search uses what it says."""

import json
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from using import AS_OPTIONS, nas_command

import nas

SPACE = '''
from functools import partial

import torch
from torch import nn

import nas


class Sees(nn.Module):
    """Lets some quarters of an image through: there are four classes, each with its mark in another one."""

    def __init__(self, quarters):
        super().__init__()
        mask = torch.zeros(4)
        mask[:quarters] = 1
        self.register_buffer("mask", mask.view(1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3))

    def forward(self, x):
        return x * self.mask


def make(classes=4, in_channels=1):
    def build(choose):
        sees = choose.value("sees", [0, 1, 2, 3])
        side = choose.value("side", [1, 3, 5])
        stem = nn.Conv2d(in_channels, 4, side, padding=side // 2)
        head = [nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)]
        return nn.Sequential(Sees(sees), stem, *head)

    return nas.Space("quarters", build)
'''
QUICK = ("--set", "trial.batch=8", "--set", "trial.flip=false", "--set", "trial.crop=false")


def _tau(x, y):
    """Kendall's tau-b, as SciPy's but for its half a millisecond, of which intervals take twenty thousand."""
    a, b = np.sign(np.subtract.outer(x, x)), np.sign(np.subtract.outer(y, y))
    return SimpleNamespace(statistic=(a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def _ranks(x, axis=None):
    x = np.asarray(x)
    if axis is not None:
        return np.apply_along_axis(_ranks, axis, x)
    return (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) + 1) / 2


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """What `nas calibrate` said of a space of which some architectures are half blind; how it was called."""
    base = tmp_path_factory.mktemp("calibrated")
    (base / "space.py").write_text(SPACE)
    draw, y = np.random.default_rng(0), np.arange(120) % 4
    x = draw.integers(0, 40, (120, 8, 8))
    for image, kind in zip(x, y, strict=True):
        image[4 * (kind // 2) :, 4 * (kind % 2) :][:4, :4] += 150
    np.savez(base / "marks.npz", x_train=x.astype(np.uint8), y_train=y)
    subject = ["--space", f"{base}/space.py:make", "--task", f"npz:{base}/marks.npz"]
    asked = [*subject, "--architectures", "10", "--epochs", "6", "--repeats", "1", "--threshold", "0", *QUICK]
    with mock.patch("scipy.stats.kendalltau", _tau), mock.patch("scipy.stats.rankdata", _ranks):
        said = nas_command("calibrate", *asked, "--out", base / "calibration", "--json")
    assert said.code == 0, said.err
    return json.loads(said.out), subject, asked, base / "calibration"


def test_fidelities_are_ranked_by_how_they_agree_with_long_training(calibrated):
    told, _, asked, folder = calibrated
    assert json.loads(json.dumps(nas.Calibration.from_dict(told).to_dict())) == told
    estimates = {estimate["name"]: estimate for estimate in told["estimates"]}
    for estimate in estimates.values():
        for kind in ("tau", "rho"):
            assert -1 <= estimate[f"{kind}_low"] <= estimate[kind] <= estimate[f"{kind}_high"] <= 1
        assert estimate["cost_s"] > 0
    trained = [estimate for estimate in estimates.values() if estimate["group"] == "trained"]
    assert len(trained) >= 3
    assert max(estimate["tau"] for estimate in trained) > 0.3  # what is blind is bad at every fidelity
    trusted = [estimate for estimate in trained if estimate["tau_low"] >= 0]
    best = min(trusted, key=lambda estimate: estimate["cost_s"], default={"name": None})
    assert told["chosen"] == best["name"]
    again = nas_command(
        "calibrate", *asked, "--out", folder, "--json"
    )  # which is read, and not measured anew
    assert json.loads(again.out) == told


def test_a_search_trains_its_trials_as_a_calibration_says(calibrated, tmp_path):
    told, subject, *_ = calibrated
    place = tmp_path / "calibration"
    without_epochs = (*AS_OPTIONS[:2], *AS_OPTIONS[4:])
    asked = [*subject, "--method", "random", *without_epochs, "--fidelity", "auto", "--calibration", place]
    place.mkdir()
    (place / "calibration.json").write_text(json.dumps(told | {"chosen": "epochs=2,images=0.5"}))
    said = nas_command("search", *asked, "--out", tmp_path / "run")
    assert said.code == 0, said.err
    result = nas.load_result(tmp_path / "run", space=subject[1])
    assert {trial.fidelity for trial in result.history} == {2}
    (place / "calibration.json").write_text(json.dumps(told | {"chosen": None}))
    said = nas_command("search", *asked, "--out", tmp_path / "untrusted")
    assert said.code == 0
    assert "calibration" in said.err
    other = asked.copy()
    other[other.index("--task") + 1] = "digits"
    said = nas_command("search", *other, "--out", tmp_path / "other")
    assert said.code == 2
    assert "calibrat" in said.err
    assert not (tmp_path / "other").exists()
    (place / "calibration.json").write_text("{}")
    assert nas_command("search", *asked, "--out", tmp_path / "damaged").code == 2
