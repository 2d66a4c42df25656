"""Training a known architecture: sizes, settings, interruption."""

import json

import numpy as np
import pytest
from jobs import SMALL, outcome, snapshot

import nas
from nas.errors import ConfigError
from nas.results.result import describe_architecture

SETTINGS = {"space_settings": {"width": 4}, "retrain": {"epochs": 2}}


@pytest.fixture
def architecture(tmp_path):
    space = nas.load("toy", width=4, in_channels=1)
    file = tmp_path / "architecture.json"
    file.write_text(json.dumps(describe_architecture(space, (2, 0, 2), {})))
    return file


@pytest.mark.usefixtures("drawn")
def test_it_trains_that_architecture_and_a_second_call_only_answers(architecture, tmp_path):
    out = tmp_path / "run"
    result = nas.retrain(architecture, "digits", out=out, settings=SETTINGS)
    assert result.genotype == (2, 0, 2)
    assert result.space.settings["width"] == 4
    assert json.loads((out / "run.json").read_text())["architecture"] == [2, 0, 2]
    assert (out / "cells.svg").exists() and not (out / "search.svg").exists()
    before = snapshot(out)
    assert outcome(nas.retrain(architecture, "digits", out=out, settings=SETTINGS)) == outcome(result)
    assert snapshot(out) == before


def test_the_folder_of_a_search_is_refused_as_such(architecture, tmp_path):
    settings = SMALL | {"trials": 1}
    found = nas.search("toy", "digits", "random", out=tmp_path / "run", settings=settings)
    with pytest.raises(
        ConfigError, match="run holds a search, and this is a retraining; choose another --out"
    ):
        nas.retrain(found.folder, "digits", out=found.folder, settings=SETTINGS)
    nas.retrain(architecture, "digits", out=tmp_path / "again", settings=SETTINGS)
    with pytest.raises(ConfigError, match="again holds a retraining, and this is a search; choose another"):
        nas.search("toy", "digits", "random", out=tmp_path / "again", settings=settings)


def test_settings_of_a_search_are_refused(architecture, tmp_path):
    with pytest.raises(ConfigError, match="top_k is set, but a retraining uses only"):
        nas.retrain(architecture, "digits", out=tmp_path / "run", settings={"top_k": 3})


@pytest.mark.parametrize("wrong", [{"task": 5}, {"space": nas.Space}])
def test_arguments_of_another_kind_are_named(architecture, tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"retrain: {next(iter(wrong))} is a .*, wanted a name"):
        nas.retrain(architecture, **{"task": "digits"} | wrong, out=tmp_path / "run")


def test_the_published_recipe_takes_the_spaces_full_size(tmp_path):
    space = nas.load("darts", width=4, cells=3, image_size=32)
    architecture = describe_architecture(space, space.sample(np.random.default_rng(0)), {})
    rng = np.random.default_rng(0)
    # Not square: the auxiliary head has to fit both sides.
    images, labels = rng.integers(0, 255, (40, 32, 24, 3), dtype=np.uint8), np.arange(40) % 2
    task = nas.task_from_arrays(images, labels)
    settings = {
        "preset": "standard",
        "retrain": {"epochs": 1, "batch": 16},
        "final_settings": {"width": 4, "cells": 3},
    }
    result = nas.retrain(architecture, task, out=tmp_path / "run", settings=settings)
    assert result.space.settings["auxiliary"] is True
    assert result.space.settings["cells"] == 3
    plan = json.loads((tmp_path / "run" / "run.json").read_text())["plan"]
    assert plan["final"]["drop_path"] == 0.2
    assert plan["final"]["auxiliary"] == 0.4
