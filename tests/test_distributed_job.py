"""Whole jobs over several ranks: rank 0 leaves one result, whatever happens to the others on the way."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from jobs import TINY, Recorder, options, outcome
from ranks import started, together
from typer.testing import CliRunner

import nas
from nas.__main__ import app, main
from nas.results.result import load_result
from nas.training.checkpoint import Checkpoints
from nas.training.ddp import ALONE, joined

SETTINGS = {**TINY, "epochs": 12, "top_k": 1, "search_images": 64}
del SETTINGS["repeats"], SETTINGS["top_k_epochs"], SETTINGS["trial"]
COMMAND = ["search", "--space", "toy", "--task", "digits", "--method", "darts", *options(SETTINGS)]


def job(team, folder, names, settings):
    """What the job told, and its outcome as this rank has it."""
    recorder = Recorder()
    result = nas.search(*names, out=folder, settings=settings, progress=recorder)
    weights = {name: value.numpy() for name, value in result.network.state_dict().items()}
    return recorder.phases, recorder.notes, result.genotype, dict(result.metrics), weights


def assert_equal_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value == theirs[name]).all(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a search that nothing disturbed, and what each rank returned."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, together(job, folder, ("toy", "digits", "darts"), SETTINGS, limit_s=None)


def test_every_rank_has_the_result_and_rank_0_alone_speaks(whole):
    folder, ((phases, notes, *first), (silence, also, *second)) = whole
    assert [name for name, *_ in phases] == ["search", "retrain"]
    assert "2 ranks train together: each takes 32 of 64 images of a batch" in notes
    assert (silence, also) == ([], [])
    assert first[:2] == second[:2]
    assert_equal_weights(first[2], second[2])
    assert json.loads((folder / "run.json").read_text())["environment"]["ranks"] == 2
    assert not (folder / "checkpoint").exists()


def test_trials_on_shared_weights_and_a_retraining_use_all_ranks(tmp_path):
    settings = {**TINY, "trials": 3, "sharing": {"calibration": 16}, "repeats": 1}
    settings |= {"epochs": 8, "supernet": {"batch": 10, "lr": 0.2}}  # with less it learns nothing
    found = together(job, tmp_path / "run", ("toy", "digits", "spos"), settings, limit_s=None)
    assert [name for name, *_ in found[0][0]] == ["supernet", "search", "re-evaluation", "retrain"]
    assert_equal_weights(found[0][4], found[1][4])
    (again, *_), _ = together(retrain, tmp_path / "run", tmp_path / "again", limit_s=None)
    assert again == found[0][2]


def retrain(team, source, folder):
    settings = {"export": False, "pictures": False, "retrain": {"epochs": 1}}
    result = nas.retrain(source, "digits", out=folder, settings=settings)
    return result.genotype, result.metrics["test_acc"]


def command(team, folder):
    """The command line, its messages in a file for each rank."""
    os.environ["COLUMNS"] = "200"
    with (folder / f"rank{os.environ['RANK']}.txt").open("a", buffering=1) as file:
        sys.argv = ["nas", *COMMAND, "--out", str(folder / "run")]
        with contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
            try:
                main()
            except SystemExit as exit_:
                return exit_.code
    raise AssertionError("a command ends by SystemExit")


def wait_for(text, file):
    until = time.monotonic() + 120
    while not (file.exists() and text in file.read_text()):
        assert time.monotonic() < until, file.read_text() if file.exists() else "no messages"
        time.sleep(0.01)


def test_a_signal_leaves_one_checkpoint_and_the_same_command_goes_on(whole, tmp_path):
    ranks = started(command, tmp_path, limit_s=None)
    wait_for("epoch 3:", tmp_path / "rank0.txt")
    for rank in ranks:
        os.kill(rank.process.pid, signal.SIGTERM)
    assert [rank.outcome() for rank in ranks] == [("value", 143)] * 2
    step, _ = Checkpoints(tmp_path / "run" / "checkpoint" / "search").load()
    said = (tmp_path / "rank0.txt").read_text()
    assert f"search stopped after step {step} of 12; the same command goes on from here" in said
    assert (tmp_path / "rank1.txt").read_text() == ""
    assert together(command, tmp_path, limit_s=None) == [0, 0]
    assert outcome(load_result(tmp_path / "run")) == outcome(load_result(whole[0]))


def test_the_launcher_runs_the_module(whole, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "nas"]
    done = subprocess.run(
        [*launcher, *COMMAND, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model.safetensors") == done.stderr.count("epoch 12:") == 1
    assert outcome(load_result(tmp_path / "run")) == outcome(load_result(whole[0]))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["search", "--space", "toy", "--method", "random"], 2, "trains its trials one by one"),
        (["calibrate", "--space", "toy"], 2, "a calibration runs in one process"),
        (["benchmark", "nasbench201"], 2, "a benchmark runs in one process"),
    ],
)
def test_what_gains_nothing_from_ranks_is_refused_once(arguments, code, words, tmp_path):
    ranks = started(refused, [*arguments, "--out", str(tmp_path / "run")], limit_s=None)
    (kind, first), (also, second) = [rank.outcome() for rank in ranks]
    assert (kind, also) == ("value", "value")
    assert first[0] == second[0] == code
    assert words in first[1] and "start it without torchrun" in first[1]
    assert second[1] == "" and not (tmp_path / "run").exists()


def refused(team, arguments):
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stderr


def test_a_launch_that_makes_no_sense_is_refused(monkeypatch):
    for name, value in {"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["calibrate"])
    assert done.exit_code == 2 and "RANK is 'x' and WORLD_SIZE '2'" in done.stderr


def test_one_rank_is_a_process_alone(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with joined(limit_s=1) as team:
        assert team is ALONE
