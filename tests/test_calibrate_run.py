"""Small calibrations of a few seconds: what they compare, leave out, and survive."""

import dataclasses
import json
import tomllib

import pytest
from jobs import Recorder
from torch import nn
from typer.testing import CliRunner

from nas.__main__ import app
from nas.data.loading import load_task
from nas.errors import ConfigError, Stopped
from nas.evaluate.calibration import FILE, Settings, read_calibration
from nas.evaluate.proxies import PROXIES
from nas.run.calibrate import calibrate, fidelities
from nas.run.config import make_config
from nas.run.preparation import prepare
from nas.space.space import Space

TASK = load_task("digits")
FEW = Settings(architectures=5, epochs=1, repeats=2)
CHEAP = {"epochs": 2, "search_images": 150, "trial": {"batch": 32}}
TOY = CHEAP | {"space_settings": {"width": 4}}
FILES = {FILE, "calibration.svg", "calibration.png", "settings.json"}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr("nas.evaluate.calibration.RESAMPLES", 20)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A finished calibration and its folder; not to be written to."""
    folder = tmp_path_factory.mktemp("toy") / "c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas.evaluate.calibration.RESAMPLES", 20)
        return calibrate("toy", TASK, FEW, out=folder, config=TOY), folder


def timeless(calibration):
    """All but the seconds."""
    estimates = [{**e, "cost_s": 0} for e in calibration.to_dict()["estimates"]]
    return calibration.to_dict() | {"estimates": estimates}


def by_hand(*, widths=False):
    def build(choose):
        width = choose.value("width", [4, 8, 12]) if widths else 8
        acts = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
        body = [choose.op(f"act{i}", acts) for i in range(2)]
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), *body, nn.Linear(width, 10))

    return Space("by hand", build)


# -- what is compared ------------------------------------------------------------------------------------


def test_every_group_is_there(toy):
    found, _ = toy
    groups = {}
    for e in found.estimates:
        groups.setdefault(e.group, []).append(e.name)
    assert groups["ceiling"] == ["1 epoch again (ceiling)"]
    assert {"epochs=1", "epochs=2", "epochs=2,images=0.25", "epochs=2,width=0.5"} <= set(groups["trained"])
    assert set(groups["speed"]) == {f"TSE-E, {name}" for name in groups["trained"]}
    assert groups["shared"] == ["shared weights"]
    assert set(groups["proxy"]) <= {*PROXIES, "log-rank of params, macs, l2_norm"}
    assert len(groups["proxy"]) > 10
    assert all(-1 <= e.tau_low <= e.tau_high <= 1 and e.cost_s > 0 for e in found.estimates)
    assert (found.architectures, found.epochs, found.repeats) == (5, 1, 2)
    assert found.fingerprint == TASK.fingerprint


def test_the_folder_holds_the_record_and_the_picture(toy):
    found, folder = toy
    assert {path.name for path in folder.iterdir()} >= FILES
    assert not (folder / "checkpoint").exists()
    assert read_calibration(folder) == found
    assert json.loads((folder / "settings.json").read_text())["architectures"] == 5
    assert tomllib.loads((folder / "config.toml").read_text())["method"] == "random"


# -- what a space does not have --------------------------------------------------------------------------


def test_all_of_a_small_space_are_calibrated_with_and_one_made_by_hand_has_one_size(tmp_path):
    settings, progress = Settings(architectures=30, epochs=1, repeats=1), Recorder()
    found = calibrate(by_hand(), TASK, settings, out=tmp_path / "c", config=CHEAP, progress=progress)
    assert found.architectures == 9
    assert any("9 architectures" in note for note in progress.notes)
    names = {e.name for e in found.estimates if e.group == "trained"}
    assert names <= {"epochs=1", "epochs=2", "epochs=2,images=0.25"}
    assert not [e for e in found.estimates if e.group == "ceiling"]
    for left_out in ("epochs=2,width=0.5", "epochs=2,cells=0.5", "epochs=2,image_size=0.5"):
        assert any(note.startswith(f"{left_out} is left out: ") for note in progress.notes)
    assert [name for name, *_ in progress.phases if name == "shared"]


def test_decisions_that_are_no_modules_leave_shared_weights_out(tmp_path):
    space, progress = by_hand(widths=True), Recorder()
    found = calibrate(space, TASK, FEW, out=tmp_path / "c", config=CHEAP, progress=progress)
    assert {e.group for e in found.estimates} >= {"trained", "proxy"}
    assert not [e for e in found.estimates if e.group == "shared"]
    notes = "\n".join(progress.notes)
    assert "shared weights are left out: the space has decisions that are no modules" in notes


def test_fidelities_are_those_that_apply(tmp_path):
    values = {"space": "nasbench201", "task": "digits", "method": "random", "epochs": 4}
    for cells, last in ((2, ["epochs=4,cells=0.5"]), (1, [])):  # which is as small as it gets
        size = {"space_settings": {"width": 4, "cells": cells}}
        names = list(map(str, fidelities(prepare(make_config(values | size), tmp_path))))
        assert names == [
            *("epochs=1", "epochs=4", "epochs=4,images=0.25", "epochs=4,image_size=0.5"),
            *("epochs=4,width=0.5", *last),
        ]


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [{"trials": 7}, {"retrain": {"epochs": 1}}])
def test_settings_that_a_calibration_does_not_read_are_refused(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is set, but a calibration uses only space"):
        calibrate("toy", TASK, FEW, out=tmp_path / "c", config=TOY | setting)
    assert not (tmp_path / "c").exists()


def test_a_folder_of_other_settings_is_refused(toy):
    other = dataclasses.replace(FEW, architectures=6)
    with pytest.raises(ConfigError, match="architectures: 5 in the folder, 6 now"):
        calibrate("toy", TASK, other, out=toy[1], config=TOY)
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        calibrate("toy", TASK, FEW, out=toy[1], config=TOY | {"seed": 1})


# -- resuming --------------------------------------------------------------------------------------------


def test_a_stopped_calibration_goes_on_where_it_was(toy, tmp_path):
    left = [False] * 30  # in the truth
    with pytest.raises(Stopped):
        calibrate("toy", TASK, FEW, out=tmp_path, config=TOY, stop=lambda: left.pop() if left else True)
    with pytest.raises(ConfigError, match="no finished calibration"):
        read_calibration(tmp_path)
    progress = Recorder()
    found = calibrate("toy", TASK, FEW, out=tmp_path, config=TOY, progress=progress)
    assert progress.phases[0][2] > 0
    assert timeless(found) == timeless(toy[0])


# -- the command line ------------------------------------------------------------------------------------


def test_the_command_prints_a_finished_calibration_as_json_or_a_table(toy, tmp_path):
    found, folder = toy
    config = tmp_path / "c.toml"
    config.write_text(
        'space = "toy"\ntask = "digits"\nepochs = 2\nsearch_images = 150\n'
        "[space_settings]\nwidth = 4\n[trial]\nbatch = 32\n"
    )
    arguments = ["calibrate", "--config", config, "--architectures", 5, "--epochs", 1, "--out", folder]
    as_json, table, quiet = (
        CliRunner().invoke(app, [*map(str, arguments), *more]) for more in (["--json"], [], ["--quiet"])
    )
    assert json.loads(as_json.stdout) == json.loads((folder / FILE).read_text())
    assert table.stdout.splitlines() == found.lines()
    assert "holds this calibration already, finished" in table.stderr
    assert (quiet.stdout, quiet.stderr) == (table.stdout, "")
