import dataclasses
import json

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


def refused(folder, **changes):
    with pytest.raises(ConfigError) as caught:
        start(folder, **changes)
    return str(caught.value)


def edit(folder, **changes):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **changes}))


def test_device_and_budget_may_change(tmp_path):
    first = start(tmp_path, device="cpu")
    assert start(tmp_path, budget="5m") == first


def test_changed_settings_are_refused_with_each_difference(tmp_path):
    start(tmp_path, trials=3, trial={"lr": 0.5})
    message = refused(tmp_path, trials=4, trial={"batch": 8}, preset="standard")
    assert f"{tmp_path} holds a run with other settings:" in message
    assert "  trials: 3 in the folder, 4 now" in message
    assert "  trial.lr: 0.5 in the folder, None now" in message
    assert "  trial.batch: None in the folder, 8 now" in message
    assert "repeat its command to resume it, or choose another --out folder" in message


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


@pytest.mark.parametrize("name", ["notes.txt", "study.log", "config.toml"])
def test_a_folder_with_other_things_in_it_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"is not empty \({name}\) and holds no run; choose another --out"):
        open_folder(tmp_path)


def test_what_a_killed_process_was_writing_goes_when_the_run_goes_on(tmp_path):
    start(tmp_path)
    path = tmp_path / ".tmp-1.safetensors"
    path.write_bytes(b"half of it")
    start(tmp_path)
    assert not path.exists()
