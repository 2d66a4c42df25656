import dataclasses

import pytest

from nas.data.loading import load_task
from nas.errors import ConfigError, SpaceError
from nas.run.config import make_config
from nas.run.job import Job
from nas.run.resolved_config import make_plan
from nas.run.run_folder import begin, open_folder
from nas.show.progress import Silent
from nas.space.loading import load
from nas.training.recipe import Recipe

TASK = load_task("digits")
SPACE = load("toy", width=4)


def start(folder, *, space=SPACE, task=TASK, force=False, **settings):
    config = make_config({"method": "random", **settings})
    recipe = Recipe(epochs=1, batch=4, lr=0.1, weight_decay=0.0)
    made = Job(
        config, make_plan(config), space, task, task, space, recipe, open_folder(folder), Silent(), bool
    )
    return begin(made, force=force)


def test_device_and_budget_may_change(tmp_path):
    first = start(tmp_path, device="cpu")
    assert start(tmp_path, budget="5m") == first


def test_settings_that_cannot_be_written_down_are_refused_before_anything_is(tmp_path):
    space = dataclasses.replace(SPACE, settings={"act": print})
    with pytest.raises(SpaceError, match="'act': <built-in function print>"):
        start(tmp_path, space=space)
    assert not list(tmp_path.iterdir())


# -- data ------------------------------------------------------------------------------------------------

CHANGED = dataclasses.replace(TASK, fingerprint="f" * 64)


def test_changed_data_are_taken_when_forced_and_what_was_in_training_starts_again(tmp_path):
    start(tmp_path)
    (tmp_path / "checkpoint" / "search").mkdir(parents=True)
    assert start(tmp_path, task=CHANGED, force=True)["task"]["fingerprint"] == CHANGED.fingerprint
    assert not (tmp_path / "checkpoint").exists()
    assert start(tmp_path, task=CHANGED)["task"]["fingerprint"] == CHANGED.fingerprint


# -- folders ---------------------------------------------------------------------------------------------


def test_a_folder_without_a_record_is_no_run(tmp_path):
    (tmp_path / "study.log").touch()
    with pytest.raises(ConfigError, match=r"is not empty \(study.log\) and holds no run"):
        open_folder(tmp_path)


def test_what_a_killed_process_was_writing_goes_when_the_run_goes_on(tmp_path):
    start(tmp_path)
    path = tmp_path / ".tmp-1.safetensors"
    path.write_bytes(b"half of it")
    start(tmp_path)
    assert not path.exists()
