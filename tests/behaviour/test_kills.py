"""Processes that are killed, interrupted or doubled: what comes of it is what an undisturbed run gives."""

import json
import os
import signal
import time

import numpy as np
import pytest
from forking import finish, run_killed, start, wait_for
from sklearn.datasets import load_digits
from using import nas_command

import nas

SEARCH = ("--epochs", "4", "--set", "retrain.epochs=6", "--no-export", "--set", "pictures=false")
COMMANDS = {
    "evolution": (
        *("search", "--space", "toy", "--method", "evolution", *SEARCH, "--trials", "5", "--top-k", "2"),
        *("--set", "searcher.population=3", "--set", "searcher.tournament=2", "--set", "repeats=2"),
        *("--set", "top_k_epochs=3"),
    ),
    "darts": ("search", "--space", "toy", "--method", "darts", *SEARCH, "--no-baselines", "--top-k", "2"),
    "workers": (
        *("search", "--space", "toy", "--method", "random", *SEARCH, "--no-baselines", "--top-k", "1"),
        *("--trials", "8", "--workers", "2"),
    ),
}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Four hundred handwritten digits in a file."""
    digits, file = load_digits(), tmp_path_factory.mktemp("task") / "digits.npz"
    np.savez(file, x_train=(15 * digits.images[:400]).astype(np.uint8), y_train=digits.target[:400])
    return f"npz:{file}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, task):
    """Gives the folder that a command leaves where nothing happens to it, and the seconds that it takes."""
    base, done = tmp_path_factory.mktemp("undisturbed"), {}

    def run(name):
        if name not in done:
            begin = time.monotonic()
            assert (
                finish(start([*COMMANDS[name], "--task", task, "--out", base / name], base / f"{name}.txt"))
                == 0
            )
            done[name] = (base / name, time.monotonic() - begin)
        return done[name]

    return run


def _same(folder, other):
    """Asserts that two folders hold the same weights, architecture and history."""
    assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    told = [json.loads((place / "architecture.json").read_text()) for place in (folder, other)]
    assert told[0] | {"metrics": {}} == told[1] | {"metrics": {}}
    results = [nas.load_result(place) for place in (folder, other)]
    kept = [
        [(t.number, t.genotype, t.fidelity, t.state, dict(t.metrics)) for t in result.history]
        for result in results
    ]
    assert kept[0] == kept[1]
    assert results[0].genotype == results[1].genotype
    assert results[0].metrics["test_acc"] == results[1].metrics["test_acc"]
    assert nas_command("check", folder).code == 0


@pytest.mark.parametrize("name", ["evolution", "darts"])
def test_a_search_killed_at_any_moments_ends_as_the_undisturbed_one(undisturbed, task, tmp_path, name):
    whole, seconds = undisturbed(name)
    arguments = [*COMMANDS[name], "--task", task, "--out", tmp_path / "run"]
    folder, log = tmp_path / "run", tmp_path / "said.txt"
    run_killed(arguments, folder, log, kills=2, longest_s=0.5 * seconds, seed=len(name))
    _same(tmp_path / "run", whole)


def test_a_retraining_killed_at_any_moments_ends_as_the_undisturbed_one(undisturbed, task, tmp_path):
    source, _ = undisturbed("evolution")
    arguments = ["retrain", source, "--task", task, "--no-export", "--epochs", "9", "--out"]
    begin = time.monotonic()
    assert finish(start([*arguments, tmp_path / "whole"], tmp_path / "whole.txt")) == 0
    seconds = time.monotonic() - begin
    folder, log = tmp_path / "run", tmp_path / "said.txt"
    run_killed([*arguments, folder], folder, log, kills=2, longest_s=0.5 * seconds, seed=3)
    _same(folder, tmp_path / "whole")


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_with_a_word_and_the_same_command_goes_on(
    undisturbed, task, tmp_path, sign, code
):
    arguments = [*COMMANDS["evolution"], "--task", task, "--out", tmp_path / "run"]
    process = start(arguments, tmp_path / "said.txt")
    wait_for((tmp_path / "run" / "study.log").exists)
    os.kill(process.pid, sign)
    assert finish(process) == code
    words = (tmp_path / "said.txt").read_text()
    assert "the same command goes on" in words
    assert "Traceback" not in words
    assert not (tmp_path / "run" / "manifest.json").exists()
    if sign == signal.SIGINT:
        assert finish(start(arguments, tmp_path / "said.txt")) == 0
        _same(tmp_path / "run", undisturbed("evolution")[0])


def test_a_second_process_on_one_folder_is_refused_and_the_first_is_not_disturbed(
    undisturbed, task, tmp_path
):
    whole, _ = undisturbed("darts")
    arguments = [*COMMANDS["darts"], "--task", task, "--out", tmp_path / "run"]
    first = start(arguments, tmp_path / "said.txt")
    wait_for((tmp_path / "run" / "run.json").exists)
    os.kill(first.pid, signal.SIGSTOP)  # so that it has not ended when the second asks
    said = nas_command(*arguments)
    os.kill(first.pid, signal.SIGCONT)
    assert said.code == 2
    assert str(tmp_path / "run") in said.err
    assert str(first.pid) in said.err
    assert finish(first) == 0
    _same(tmp_path / "run", whole)


def test_two_workers_do_each_trial_once_and_leave_nobody_behind(task, tmp_path):
    arguments = [*COMMANDS["workers"], "--task", task, "--out", tmp_path / "run"]
    assert finish(start(arguments, tmp_path / "said.txt")) == 0, (tmp_path / "said.txt").read_text()
    result = nas.load_result(tmp_path / "run")
    assert [trial.number for trial in result.history] == list(range(8))
    assert {trial.state for trial in result.history} == {"done"}
    assert len({trial.genotype for trial in result.history}) == 8
    assert nas_command("check", tmp_path / "run").code == 0


THREAD = """
import threading, time
import nas
from nas.spaces.toy import toy


def make(classes=10, in_channels=1):
    threading.Thread(target=time.sleep, args=(600,)).start()
    return nas.Space("mine", toy(classes=classes, in_channels=in_channels).build)
"""


def test_a_finished_command_ends_whatever_threads_the_users_code_left(task, tmp_path):
    (tmp_path / "space.py").write_text(THREAD)
    asked = ["search", "--space", f"{tmp_path}/space.py:make", "--method", "random", *SEARCH, "--trials", "1"]
    asked += ["--top-k", "1", "--no-baselines", "--task", task, "--out", tmp_path / "run"]
    process = start(asked, tmp_path / "said.txt")
    try:
        wait_for((tmp_path / "run" / "manifest.json").exists)
        process.join(2)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()


def test_a_low_limit_of_memory_is_told_in_words(task, tmp_path):
    process = start(
        [*COMMANDS["darts"], "--task", task, "--out", tmp_path / "run"], tmp_path / "said.txt", memory_mb=4
    )
    assert finish(process) not in (0, 1)
    words = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in words
    assert "memory" in words
