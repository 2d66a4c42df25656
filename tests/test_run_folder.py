import dataclasses
import json
import os

import pytest

from nas.data.task import load_task
from nas.errors import ConfigError, DataError, SpaceError
from nas.files.tomlfile import read_toml
from nas.results.run_record import FORMAT, read_run
from nas.run.config import make_config
from nas.run.resolved_config import make_plan
from nas.run.run_folder import begin, open_folder
from nas.space.loading import load
from nas.space.space import Space

TASK = load_task("digits")
SPACE = load("toy", width=4)


def start(folder, *, space=SPACE, task=TASK, genotype=None, force=False, **settings):
    config = make_config({"method": "random", **settings})
    return begin(
        open_folder(folder), config, make_plan(config), space=space, task=task, genotype=genotype, force=force
    )


def refused(folder, **changes):
    with pytest.raises(ConfigError) as caught:
        start(folder, **changes)
    return str(caught.value)


def edit(folder, **changes):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **changes}))


def test_a_new_run_writes_down_what_it_is(tmp_path):
    record = start(tmp_path / "a", trials=7)
    assert record == json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["config"]["trials"] == record["plan"]["trials"] == 7
    assert record["space"]["settings"] == {"width": 4, "classes": 10, "in_channels": 1}
    assert record["task"]["fingerprint"] == TASK.fingerprint
    assert record["task"]["images"] == {
        "train": len(TASK.train),
        "val": len(TASK.val),
        "test": len(TASK.test),
    }
    assert {"torch", "python", "nas-engine", "hardware", "device"} <= record["environment"].keys()
    again = make_config(read_toml(tmp_path / "a" / "config.toml"))
    assert again == make_config({"method": "random", "trials": 7})


def test_the_same_run_is_taken_up(tmp_path):
    assert start(tmp_path) == start(tmp_path)


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


def test_another_method_is_another_run(tmp_path):
    start(tmp_path)
    assert "method: 'random' in the folder, 'darts' now" in refused(tmp_path, method="darts")


def test_another_architecture_is_another_run(tmp_path):
    start(tmp_path, genotype=(1, 1, 1))
    assert "architecture: [1, 1, 1] in the folder, [1, 1, 2] now" in refused(tmp_path, genotype=(1, 1, 2))
    assert "holds a retraining, and this is a search; choose another --out folder" in refused(tmp_path)


def test_another_space_under_the_same_name_is_another_run(tmp_path):
    start(tmp_path)
    assert "space.settings.width: 4 in the folder, 8 now" in refused(tmp_path, space=load("toy", width=8))


def test_a_preset_that_means_something_else_now_is_refused(tmp_path):
    record = start(tmp_path)
    edit(tmp_path, plan={**record["plan"], "top_k_epochs": 99})
    assert "plan.top_k_epochs: 99 in the folder, 10 now" in refused(tmp_path)


def test_settings_that_json_changes_are_the_same_settings(tmp_path):
    space = dataclasses.replace(SPACE, settings={"kernels": ((3, 3), (5, 5))})
    assert start(tmp_path, space=space) == start(tmp_path, space=space)


def test_settings_that_cannot_be_written_down_are_refused_before_anything_is(tmp_path):
    space = dataclasses.replace(SPACE, settings={"act": print})
    with pytest.raises(SpaceError, match="'act': <built-in function print>"):
        start(tmp_path, space=space)
    assert not list(tmp_path.iterdir())


# -- data ------------------------------------------------------------------------------------------------

CHANGED = dataclasses.replace(TASK, fingerprint="f" * 64)


def test_changed_data_are_refused(tmp_path):
    start(tmp_path)
    with pytest.raises(DataError, match=r"'digits' changed since .* is ffffffffffff, not .*use --force"):
        start(tmp_path, task=CHANGED)


def test_changed_data_are_taken_when_forced_and_what_was_in_training_starts_again(tmp_path):
    start(tmp_path)
    (tmp_path / "checkpoint" / "search").mkdir(parents=True)
    assert start(tmp_path, task=CHANGED, force=True)["task"]["fingerprint"] == CHANGED.fingerprint
    assert not (tmp_path / "checkpoint").exists()
    assert start(tmp_path, task=CHANGED)["task"]["fingerprint"] == CHANGED.fingerprint


def test_force_changes_nothing_where_the_data_did_not(tmp_path):
    before = start(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    assert start(tmp_path, force=True) == before
    assert (tmp_path / "checkpoint").exists()


def test_force_changes_nothing_in_a_finished_run(tmp_path):
    before = start(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert start(tmp_path, task=CHANGED, force=True) == before == read_run(tmp_path)


def test_other_settings_are_named_before_the_data_that_follow_from_them(tmp_path):
    start(tmp_path)
    assert "seed: 0 in the folder, 1 now" in refused(tmp_path, seed=1, task=CHANGED)


def test_data_of_another_kind_are_no_continuation_even_when_forced(tmp_path):
    start(tmp_path)
    nine = load("toy", width=4, classes=9)
    assert "space.settings.classes: 10 in" in refused(tmp_path, task=CHANGED, space=nine, force=True)


# -- folders ---------------------------------------------------------------------------------------------


def test_a_run_killed_before_its_config_was_written_gets_it_later(tmp_path):
    start(tmp_path, trials=3)
    before = (tmp_path / "config.toml").read_text()
    (tmp_path / "config.toml").unlink()
    start(tmp_path, trials=3)
    assert (tmp_path / "config.toml").read_text() == before


@pytest.mark.parametrize("name", ["notes.txt", "study.log", "config.toml"])
def test_a_folder_with_other_things_in_it_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"is not empty \({name}\) and holds no run; choose another --out"):
        open_folder(tmp_path)


def test_leftovers_of_a_killed_start_are_no_obstacle(tmp_path):
    (tmp_path / "run.lock").touch()
    (tmp_path / ".tmp-1234.json").touch()
    assert open_folder(tmp_path) == tmp_path.resolve()


def test_what_a_killed_process_was_writing_goes_when_the_run_goes_on(tmp_path):
    start(tmp_path)
    old, young = (tmp_path / f".tmp-{name}.safetensors" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half of it")
    os.utime(old, (0, 0))
    start(tmp_path)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(ConfigError, match="cannot use"):
        open_folder(tmp_path / "a" / "b")


def test_a_run_of_a_newer_version_asks_for_an_upgrade(tmp_path):
    start(tmp_path)
    edit(tmp_path, format=FORMAT + 1)
    message = refused(tmp_path)
    assert f"newer version (format {FORMAT + 1}, this one reads {FORMAT}); upgrade" in message


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "1"}', '{"format": 1}', "{", '{"format": NaN}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json"):
        read_run(tmp_path)


def test_no_record_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run: there is no run\.json"):
        read_run(tmp_path)


def test_nothing_of_the_environment_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2-secret")
    start(tmp_path)
    assert not [p for p in tmp_path.iterdir() if "hunter2" in p.read_text() or "MY_TOKEN" in p.read_text()]


def test_a_space_made_by_hand_has_no_settings(tmp_path):
    assert start(tmp_path, space=Space("mine", SPACE.build))["space"]["settings"] == {}
