"""A finished run whose files were changed: one flipped bit in any of them is noticed before it is used."""

import json
import logging
import shutil

import pytest
from damage import DAMAGES, witness
from jobs import TINY, snapshot
from typer.testing import CliRunner

import nas
from nas.cli.app import app
from nas.errors import ConfigError
from nas.files.folder import MANIFEST, check_manifest
from nas.results.result import ARCHITECTURE, load_result, read_architecture
from nas.run.pipeline import search

FILES = {
    *("config.toml", "run.json", "metrics.json", "architecture.json", "architecture.graphml"),
    *("model.safetensors", "alphas.npz", "health.json", "baselines.json", "front.json", "report.html"),
    *(
        f"{name}.{kind}"
        for name in ("cells", "network", "search", "alphas", "health")
        for kind in ("svg", "png")
    ),
}
READ = {"run.json", "metrics.json", "architecture.json", "model.safetensors", "baselines.json"}
MADE = FILES - {"front.json"}
"""What a search by gradients leaves; a front needs two objectives."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished search by gradients, with baselines, and a Pareto search."""
    folder = tmp_path_factory.mktemp("runs")
    settings = TINY | {"baselines": True, "pictures": True}
    search("toy", "digits", "darts", out=folder / "darts", settings=settings)
    pareto = TINY | {"pictures": True, "trials": 3, "objective": ("val_acc", "-params")}
    search("toy", "digits", "random", out=folder / "pareto", settings=pareto)
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    def of(name):
        return shutil.copytree(runs / ("pareto" if name == "front.json" else "darts"), tmp_path / "run")

    return of


def nas_command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_manifest_lists_every_file(runs):
    listed = {
        name
        for run in ("darts", "pareto")
        for name in json.loads((runs / run / MANIFEST).read_text())["files"]
    }
    assert listed == FILES | {"front.svg", "front.png", "study.log", "time.json"}


@pytest.mark.parametrize("how", ["first quarter", "last bit", "cut in half", "empty", "appended"])
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_file_is_named(copy, caplog, name, how):
    folder = copy(name)
    DAMAGES[how](folder / name)
    assert check_manifest(folder) == [f"{name}: differs from what was recorded"]
    if name in READ:
        with pytest.raises(ConfigError) as caught:
            load_result(folder)
        assert f"{folder} is damaged: {name}: differs from what was recorded" in str(caught.value)
        assert "restore it from a copy, or run its command again with another --out folder" in str(
            caught.value
        )
    else:
        with caplog.at_level(logging.WARNING, logger="nas"):
            load_result(folder)
        assert f"{name}: differs from what was recorded" in caplog.text


@pytest.mark.parametrize("name", sorted(READ))
def test_a_lost_file_is_named(copy, name):
    folder = copy(name)
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"is damaged: {name}: missing"):
        load_result(folder)


def test_a_whole_run_is_loaded_without_a_word(copy, caplog):
    load_result(copy("run.json"))
    assert not caplog.text


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "last byte cut"])  # a newline
def test_a_damaged_manifest_is_noticed(copy, how):
    folder = copy("run.json")
    before = snapshot(folder)
    DAMAGES[how](folder / MANIFEST)
    with pytest.raises(ConfigError, match=r"manifest\.json|is damaged"):
        load_result(folder)
        # A bit within the list of pictures concerns no file that was read.
        raise ConfigError("is damaged") if check_manifest(folder) else AssertionError("nothing was noticed")
    after = {name: digest for name, digest in snapshot(folder).items() if name != MANIFEST}
    assert after == {name: digest for name, digest in before.items() if name != MANIFEST}
    assert not witness(folder / MANIFEST).exists()


# -- commands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["retrain", "draw"])
def test_commands_refuse_a_damaged_architecture(copy, tmp_path, command):
    folder = copy("run.json")
    text = (folder / ARCHITECTURE).read_text()
    (folder / ARCHITECTURE).write_text(text.replace('"format": 1', '"format":  1'))  # as good JSON as before
    more = ("--task", "digits") if command == "retrain" else ()
    result = nas_command(command, folder, *more, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "architecture.json: differs from what was recorded in manifest.json" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="is damaged"):
        read_architecture(folder / ARCHITECTURE)


def test_an_edited_copy_elsewhere_is_taken(copy, tmp_path):
    shutil.copy(copy("run.json") / ARCHITECTURE, tmp_path / "mine.json")
    data = json.loads((tmp_path / "mine.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps(data))
    assert read_architecture(tmp_path / "mine.json")["choices"] == data["choices"]


def test_the_command_that_made_a_run_refuses_it_when_it_is_damaged(copy):
    folder = copy("run.json")
    DAMAGES["middle"](folder / "model.safetensors")
    settings = TINY | {"baselines": True, "pictures": True}
    with pytest.raises(ConfigError, match=r"is damaged: model\.safetensors: differs"):
        search("toy", "digits", "darts", out=folder, settings=settings)


def test_check_names_what_is_damaged(copy):
    folder = copy("run.json")
    whole = nas_command("check", folder)
    assert (whole.exit_code, whole.output) == (0, f"{folder}: every file is as recorded\n")
    DAMAGES["middle"](folder / "alphas.npz")
    (folder / "cells.png").unlink()
    damaged = nas_command("check", folder)
    assert damaged.exit_code == 2
    assert "alphas.npz: differs from what was recorded; cells.png: missing in manifest.json" in damaged.output
    answer = nas_command("check", folder, "--json")
    assert json.loads(answer.output.splitlines()[0])["damage"] == [
        *("alphas.npz: differs from what was recorded", "cells.png: missing")
    ]
    assert nas_command("check", folder / "absent").exit_code == 2


# -- versions and what is no file of ours ----------------------------------------------------------------


def test_an_architecture_of_a_newer_version_asks_for_an_upgrade(copy, tmp_path):
    data = json.loads((copy("run.json") / ARCHITECTURE).read_text())
    (tmp_path / "new.json").write_text(json.dumps(data | {"format": 2}))
    with pytest.raises(
        ConfigError, match=r"newer version \(format 2, this one reads 1\); upgrade nas-engine"
    ):
        read_architecture(tmp_path / "new.json")


def test_a_result_of_an_earlier_version_is_read(copy):
    folder = copy("run.json")
    record = json.loads((folder / "run.json").read_text())
    for name in ("max_failures", "execution"):  # settings that came later
        del record["config"][name]
    (folder / "run.json").write_text(json.dumps(record))
    manifest = json.loads((folder / MANIFEST).read_text())
    from nas.files.folder import update_manifest

    update_manifest(folder, manifest["files"])
    assert load_result(folder).metrics == json.loads((folder / "metrics.json").read_text())


def test_a_setting_that_came_later_does_not_stop_a_run_from_being_resumed(tmp_path):
    settings = TINY | {"trials": 1, "top_k": 1, "top_k_epochs": None, "seeds": None}
    settings = {name: value for name, value in settings.items() if value is not None}
    with pytest.raises(nas.Stopped):
        search("toy", "digits", "random", out=tmp_path, settings=settings, stop=lambda: True)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["config"]["max_failures"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert search("toy", "digits", "random", out=tmp_path, settings=settings).metrics["trials"] == 1


@pytest.mark.parametrize("name", sorted(READ | {"alphas.npz"}))
def test_a_pickle_in_place_of_a_file_is_never_executed(copy, name):
    folder = copy(name)
    DAMAGES["pickle"](folder / name)
    from nas.files.folder import update_manifest

    update_manifest(folder, json.loads((folder / MANIFEST).read_text())["files"])
    if name not in {"alphas.npz", "baselines.json"}:  # of which load_result reads nothing
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
            load_result(folder)
    else:
        load_result(folder)
    assert not witness(folder / name).exists()
