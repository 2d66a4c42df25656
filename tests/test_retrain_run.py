"""Training a known architecture: sizes, settings, interruption."""

import json

import numpy as np
import pytest
from jobs import outcome, snapshot

import nas
from nas.errors import ConfigError
from nas.results.result import describe_architecture

SETTINGS = {"space_settings": {"width": 4}, "retrain": {"epochs": 1}}


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
    assert result.genotype == (2, 0, 2) and result.space.settings["width"] == 4
    assert json.loads((out / "run.json").read_text())["architecture"] == [2, 0, 2]
    assert (out / "cells.svg").exists() and not (out / "search.svg").exists()
    before = snapshot(out)
    assert outcome(nas.retrain(architecture, "digits", out=out, settings=SETTINGS)) == outcome(result)
    with pytest.raises(ConfigError, match="holds a retraining, and this is a search"):
        nas.search("toy", "digits", "random", out=out, settings={"space_settings": {"width": 4}})
    assert snapshot(out) == before


def test_settings_of_a_search_are_refused(architecture, tmp_path):
    with pytest.raises(ConfigError, match="top_k is set, but a retraining uses only"):
        nas.retrain(architecture, "digits", out=tmp_path / "run", settings={"top_k": 3})


def test_arguments_of_another_kind_are_named(architecture, tmp_path):
    for wrong in ({"task": 5}, {"space": nas.Space}):
        with pytest.raises(ConfigError, match=f"retrain: {next(iter(wrong))} is a .*, wanted a name"):
            nas.retrain(architecture, **{"task": "digits"} | wrong, out=tmp_path / "run")


def test_the_published_recipe_takes_the_spaces_full_size(tmp_path):
    space = nas.load("darts", width=4, cells=3, image_size=32)
    architecture = describe_architecture(space, space.sample(np.random.default_rng(0)), {})
    # Not square: the auxiliary head has to fit both sides.
    images = np.random.default_rng(0).integers(0, 255, (20, 32, 24, 3), dtype=np.uint8)
    task = nas.task_from_arrays(images, np.arange(20) % 2)
    settings = {"preset": "standard", "final_settings": {"width": 4, "cells": 3}}
    settings["retrain"] = {"epochs": 1, "batch": 16}
    result = nas.retrain(architecture, task, out=tmp_path / "run", settings=settings)
    assert (result.space.settings["auxiliary"], result.space.settings["cells"]) == (True, 3)
    final = json.loads((tmp_path / "run" / "run.json").read_text())["plan"]["final"]
    assert (final["drop_path"], final["auxiliary"]) == (0.2, 0.4)
