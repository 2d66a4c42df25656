"""A finished run whose files were changed: one flipped bit in any of them is noticed before it is used."""

import json
import shutil

import pytest
from damage import DAMAGES
from jobs import TINY

import nas
from nas.errors import ConfigError
from nas.files.folder import MANIFEST
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


def test_the_manifest_lists_every_file(runs):
    listed = {
        name
        for run in ("darts", "pareto")
        for name in json.loads((runs / run / MANIFEST).read_text())["files"]
    }
    assert listed == FILES | {"front.svg", "front.png", "study.log", "time.json"}


# -- commands --------------------------------------------------------------------------------------------


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


# -- versions and what is no file of ours ----------------------------------------------------------------


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
    settings = TINY | {"trials": 1, "top_k": 1, "top_k_epochs": None, "repeats": None}
    settings = {name: value for name, value in settings.items() if value is not None}
    with pytest.raises(nas.Stopped):
        search("toy", "digits", "random", out=tmp_path, settings=settings, stop=lambda: True)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["config"]["max_failures"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert search("toy", "digits", "random", out=tmp_path, settings=settings).metrics["trials"] == 1
