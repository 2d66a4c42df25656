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
from nas.evaluate.calibration import FILE, Calibration, Settings, chosen_fidelity, read_calibration
from nas.evaluate.proxies import PROXIES
from nas.run.calibrate import calibrate, fidelities
from nas.run.pipeline import search
from nas.space.space import Space

TASK = load_task("digits")
FEW = Settings(architectures=5, epochs=1, repeats=2)
CHEAP = {"epochs": 1, "evaluator": "shared", "search_images": 400, "trial": {"batch": 32}}
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
    assert {"epochs=1", "epochs=8", "epochs=8,images=0.25", "epochs=8,width=0.5"} <= set(groups["trained"])
    assert set(groups["speed"]) == {f"TSE-E, {name}" for name in groups["trained"]}
    assert groups["shared"] == ["shared weights"]
    assert set(groups["proxy"]) <= {*PROXIES, "log-rank of params, macs, l2_norm"}
    assert len(groups["proxy"]) > 10
    assert all(-1 <= e.tau_low <= e.tau_high <= 1 and e.cost_s > 0 for e in found.estimates)
    assert (found.architectures, found.epochs, found.repeats, found.fingerprint) == (
        5,
        1,
        2,
        TASK.fingerprint,
    )


def test_the_folder_holds_the_record_and_the_picture(toy):
    found, folder = toy
    assert {path.name for path in folder.iterdir()} >= FILES
    assert not (folder / "checkpoint").exists()
    assert read_calibration(folder) == found
    assert json.loads((folder / "settings.json").read_text())["architectures"] == 5
    assert tomllib.loads((folder / "config.toml").read_text())["method"] == "random"


def test_all_of_a_small_space_are_calibrated_with(tmp_path):
    progress = Recorder()
    settings = Settings(architectures=30, epochs=1, repeats=1)
    space = by_hand()
    found = calibrate(space, TASK, settings, out=tmp_path / "c", config=CHEAP, progress=progress)
    assert found.architectures == 9
    assert any("9 architectures" in note for note in progress.notes)
    assert not [e for e in found.estimates if e.group == "ceiling"]


# -- what a space does not have --------------------------------------------------------------------------


def test_a_space_made_by_hand_has_one_size_and_shared_weights(tmp_path):
    progress = Recorder()
    found = calibrate(by_hand(), TASK, FEW, out=tmp_path / "c", config=CHEAP, progress=progress)
    names = {e.name for e in found.estimates if e.group == "trained"}
    assert names <= {"epochs=1", "epochs=8", "epochs=8,images=0.25"}
    for left_out in ("epochs=8,width=0.5", "epochs=8,cells=0.5", "epochs=8,image_size=0.5"):
        assert any(note.startswith(f"{left_out} is left out: ") for note in progress.notes)
    assert [name for name, *_ in progress.phases if name == "shared"]


def test_decisions_that_are_no_modules_leave_shared_weights_out(tmp_path):
    progress = Recorder()
    config = CHEAP | {"space_settings": {"width": 5, "stacks": 1, "cells": 1}}
    found = calibrate("nasbench101", TASK, FEW, out=tmp_path / "c", config=config, progress=progress)
    assert not [e for e in found.estimates if e.group == "shared"]
    notes = "\n".join(progress.notes)
    assert "shared weights are left out: the space has decisions that are no modules" in notes
    assert "epochs=8,cells=0.5 is left out: the space is as small as it gets" in notes
    assert {e.group for e in found.estimates} >= {"trained", "proxy"}


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [{"trials": 7}, {"repeats": 3}, {"retrain": {"epochs": 1}}, {"top_k": 2}])
def test_settings_that_a_calibration_does_not_read_are_refused(tmp_path, setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is set, but a calibration uses only space"):
        calibrate("toy", TASK, FEW, out=tmp_path / "c", config=TOY | setting)
    assert not (tmp_path / "c").exists()


def test_a_folder_of_other_settings_is_refused(toy):
    with pytest.raises(ConfigError) as refusal:
        other = dataclasses.replace(FEW, architectures=6, threshold=0.5)
        calibrate("toy", TASK, other, out=toy[1], config=TOY)
    assert str(refusal.value).splitlines() == [
        f"{toy[1]} holds a calibration with other settings:",
        "  architectures: 5 in the folder, 6 now",
        "  threshold: 0.4 in the folder, 0.5 now",
        "repeat its command to resume it, or choose another --out folder",
    ]
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        calibrate("toy", TASK, FEW, out=toy[1], config=TOY | {"seed": 1})


# -- resuming --------------------------------------------------------------------------------------------


def test_a_stopped_calibration_goes_on_where_it_was(toy, tmp_path):
    left = [False] * 30
    with pytest.raises(Stopped):
        calibrate("toy", TASK, FEW, out=tmp_path, config=TOY, stop=lambda: left.pop() if left else True)
    with pytest.raises(ConfigError, match="no finished calibration"):
        read_calibration(tmp_path)
    progress = Recorder()
    found = calibrate("toy", TASK, FEW, out=tmp_path, config=TOY, progress=progress)
    assert progress.phases[0][2] > 0
    assert timeless(found) == timeless(toy[0])


# -- used by a search ------------------------------------------------------------------------------------

AUTO = {
    **{"trials": 2, "top_k": 1, "baselines": False, "search_images": 200, "retrain": {"epochs": 1}},
    "fidelity": "auto",
    "space_settings": {"width": 4},
}


def trusting(folder, chosen, tmp_path):
    record = read_calibration(folder).to_dict() | {"chosen": chosen}
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / FILE).write_text(json.dumps(record))
    return str(tmp_path / "trust")


def test_a_search_takes_the_fidelity_that_is_trusted(toy, tmp_path):
    progress = Recorder()
    settings = AUTO | {"calibration": trusting(toy[1], "epochs=1,width=0.5", tmp_path)}
    result = search("toy", TASK, "random", out=tmp_path / "r", settings=settings, progress=progress)
    assert "fidelity of the trials, by calibration: epochs=1,width=0.5" in progress.notes
    assert [(t.fidelity, t.metrics["epochs_trained"]) for t in result.history] == [(1, 1)] * 2
    assert json.loads((tmp_path / "r" / "run.json").read_text())["plan"]["ladder"] == "epochs=1,width=0.5"


def test_a_calibration_of_another_space_is_refused_before_anything(toy, tmp_path):
    settings = AUTO | {"calibration": str(toy[1])}
    with pytest.raises(ConfigError, match="calibrated space 'toy' on task 'digits', not 'nasbench201'"):
        search("nasbench201", TASK, "random", out=tmp_path / "r", settings=settings)
    with pytest.raises(ConfigError, match="no finished calibration"):
        search("toy", TASK, "random", out=tmp_path / "r", settings=AUTO | {"calibration": str(tmp_path)})
    assert not (tmp_path / "r").exists()
    assert chosen_fidelity(toy[1], space="toy", task="digits") == toy[0].chosen


# -- the command line ------------------------------------------------------------------------------------


def command(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_the_command_prints_json_or_a_table(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        'space = "toy"\ntask = "digits"\nepochs = 1\nevaluator = "shared"\nsearch_images = 200\n'
        "[space_settings]\nwidth = 4\n[trial]\nbatch = 32\n"
    )
    arguments = ["--config", config, "--architectures", 5, "--epochs", 1, "--out", tmp_path / "c"]
    done = command(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["space"], answer["architectures"], answer["repeats"]) == ("toy", 5, 2)
    assert answer == json.loads((tmp_path / "c" / FILE).read_text())
    table = command(*arguments)
    assert table.exit_code == 0
    assert table.stdout.splitlines() == Calibration.from_dict(answer).lines()
    assert "holds this calibration already, finished" in table.stderr
    quiet = command(*arguments, "--quiet")
    assert (quiet.stdout, quiet.stderr) == (table.stdout, "")


def test_fidelities_are_those_that_apply(tmp_path):
    from nas.run.config import make_config
    from nas.run.preparation import prepare

    values = {"space": "nasbench201", "task": "digits", "method": "random", "epochs": 4}
    made = prepare(make_config(values | {"space_settings": {"width": 4, "cells": 2}}), tmp_path)
    names = list(map(str, fidelities(made)))
    assert names == [
        *("epochs=1", "epochs=4", "epochs=4,images=0.25", "epochs=4,image_size=0.5"),
        *("epochs=4,width=0.5", "epochs=4,cells=0.5"),
    ]
