"""Whole jobs with workers on the command line: the same outcome, clear refusals, a polite end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forked import forked
from jobs import SMALL, TINY, Recorder, options, outcome
from soak import alive, children, until
from typer.testing import CliRunner

import nas
from nas.cli import app
from nas.errors import ConfigError, NoModelError, WorkersError
from nas.job.config import make_config
from nas.job.preparation import prepare
from nas.job.search_run import search
from nas.registry import load
from nas.results.result import load_result
from nas.storage.journal import JOURNAL, journal_storage
from nas.study import Study
from nas.training.resumable import Stopped
from nas.workers.join import home_in, join
from nas.workers.start import job_slots

__all__ = ["forked"]
SETTINGS = {k: v for k, v in SMALL.items() if k not in ("top_k_epochs", "seeds")} | {"trials": 5, "top_k": 1}
SLOW = """
import time
import nas
from spaces.toy import toy
from torch import nn

class Slow(nn.Module):
    def forward(self, x):
        if not x.is_meta:
            time.sleep(0.02)
        return x

def make(width=4, classes=10, in_channels=1):
    inner = toy(width=width, classes=classes, in_channels=in_channels)
    return nas.Space("slow", lambda choose: nn.Sequential(Slow(), inner.build(choose)))
"""


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def stopped_after(trials, folder, *, method="random", **settings):
    """A run that its user stopped after so many trials."""

    class Counting(Recorder):
        def advance(self, text, *, done=None):
            super().advance(text, done=done)

    progress = Counting()
    with pytest.raises(Stopped):
        search(
            "toy",
            "digits",
            method,
            out=folder,
            settings=SETTINGS | settings,
            progress=progress,
            stop=lambda: len(progress.lines) >= trials,
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never interrupted and had no help."""
    return search("toy", "digits", "random", out=tmp_path_factory.mktemp("whole"), settings=SETTINGS)


def test_two_workers_find_what_one_does(tmp_path, whole):
    progress = Recorder()
    result = search(
        "toy", "digits", "random", out=tmp_path / "run", settings=SETTINGS | {"workers": 2}, progress=progress
    )
    assert outcome(result)["history"] == outcome(whole)["history"]
    assert result.genotype == whole.genotype
    assert progress.phases == [("search", 5, 0), ("retrain", 1, 0)]
    assert sum(line.startswith("trial ") for line in progress.lines) == 5
    assert not (tmp_path / "run" / "checkpoint").exists()
    studied = journal_storage(tmp_path / "run" / JOURNAL).get_all_trials(0)
    assert {trial.user_attrs["owner"]["pid"] for trial in studied}.isdisjoint({os.getpid()})


def test_a_worker_goes_on_with_a_run_whose_coordinator_is_gone(tmp_path, whole):
    stopped_after(2, tmp_path / "run")
    done = call("worker", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert "nothing is left to do: 5 trials done" in done.stderr
    assert "search 3/5  trial 2: validation accuracy" in done.stderr
    assert outcome(search("toy", "digits", "random", out=tmp_path / "run", settings=SETTINGS)) == outcome(
        whole
    )
    assert "nothing is left to do" in call("worker", tmp_path / "run").stderr
    assert call("worker", tmp_path / "run", "--quiet").stderr.startswith("nothing is left to do: ")


def test_a_worker_needs_no_folder_but_the_journal(tmp_path, whole):
    stopped_after(2, tmp_path / "run")
    (tmp_path / "run" / JOURNAL).rename(tmp_path / JOURNAL)
    done = call("worker", "--storage", tmp_path / JOURNAL, "--scratch", tmp_path / "scratch")
    assert done.exit_code == 0, done.stderr
    history = Study.read(tmp_path, "search", load("toy", width=4))
    assert [t.metrics for t in history] == [t.metrics for t in whole.history]


def test_a_stopped_worker_leaves_its_trial_to_others(tmp_path, whole):
    stopped_after(2, tmp_path / "run")
    steps = []

    def stop():
        steps.append(1)
        return len(steps) == 2  # before the first step of a training

    with pytest.raises(Stopped):
        join(home_in(tmp_path / "run"), progress=Recorder(), stop=stop)
    left = journal_storage(tmp_path / "run" / JOURNAL).get_all_trials(0)[2]
    assert left.state.name == "WAITING"
    assert list((tmp_path / "run" / "checkpoint" / "trial-2").iterdir())
    assert call("worker", tmp_path / "run").exit_code == 0
    result = search("toy", "digits", "random", out=tmp_path / "run", settings=SETTINGS)
    assert outcome(result) == outcome(whole)


def test_a_space_of_somebodys_own_is_run_only_when_it_is_named(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    path = f"{tmp_path}/slow.py:make"
    brief = {k: v for k, v in SETTINGS.items() if k != "space_settings"}
    asked = iter(range(100))
    with pytest.raises(Stopped):
        search(path, "digits", "random", out=tmp_path / "run", settings=brief, stop=lambda: next(asked) > 12)
    (tmp_path / "elsewhere.py").write_text(SLOW)
    refused = call("worker", tmp_path / "run")
    assert (refused.exit_code, "name the code to run with --space" in refused.stderr) == (2, True)
    (tmp_path / "changed.py").write_text(SLOW.replace("0.02", "0.03"))
    refused = call("worker", tmp_path / "run", "--space", f"{tmp_path}/changed.py:make")
    assert (refused.exit_code, "another job than the study's" in refused.stderr) == (2, True)
    assert "file_sha256" in refused.stderr
    done = call("worker", tmp_path / "run", "--space", f"{tmp_path}/elsewhere.py:make")
    assert done.exit_code == 0, done.stderr
    assert f"running your code: {tmp_path}/elsewhere.py:make" in done.stderr


def test_what_cannot_be_joined_says_why(tmp_path):
    stopped_after(1, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([], "give a worker the run's folder, or --study and --storage (or NAS_STORAGE)"),
        ([tmp_path / "empty"], "holds no run: there is no run.json in it"),
        ([tmp_path / "run", "--storage", "x"], "not both"),
        ([tmp_path / "run", "--study", "x"], "--study is for workers without the run's folder"),
        ([tmp_path / "run", "--scratch", "x"], "--scratch is for workers without the run's folder"),
        (["--storage", tmp_path / "none.log"], "there is no journal"),
        (["--storage", tmp_path / "run" / JOURNAL, "--study", "x"], "is the name of a run in a database"),
        (["--storage", "postgresql+psycopg://h/d"], "name yours with --study, by its name under"),
        ([tmp_path / "run", "--space", "a.py:make"], "but the study searches 'toy'; remove it"),
        ([tmp_path / "run", "--device", "cuda:7"], "no device 'cuda:7'"),
        ([tmp_path / "run", "--task", "digit"], "did you mean 'digits'"),
    ):
        done = call("worker", *arguments)
        assert (done.exit_code in (2, 3), words in done.stderr) == (True, True), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("method", "settings"), [("darts", TINY | {"epochs": 1}), ("spos", SMALL)])
def test_a_method_that_shares_one_supernet_runs_alone_and_says_so(tmp_path, method, settings):
    progress = Recorder()
    result = search(
        "toy", "digits", method, out=tmp_path, settings=settings | {"workers": 3}, progress=progress
    )
    assert any(note.startswith(f"method '{method}' runs with one worker") for note in progress.notes)
    assert result.metrics["trials"] >= 1
    done = call("worker", tmp_path)
    assert (done.exit_code, "there are no trials to join here" in done.stderr) == (2, True)


def test_objects_cannot_be_given_to_other_processes(tmp_path):
    with pytest.raises(ConfigError, match="made in Python; give their names"):
        search(load("toy"), "digits", "random", out=tmp_path / "a", settings=SMALL | {"workers": 2})
    with pytest.raises(ConfigError, match="trial_timeout is set, but method 'spos'"):
        search("toy", "digits", "spos", out=tmp_path / "a", settings=SMALL | {"trial_timeout": "1h"})
    assert not (tmp_path / "a").exists()


def test_one_worker_is_watched_where_trials_may_take_only_so_long(tmp_path, forked):
    (tmp_path / "hangs.py").write_text(SLOW.replace("0.02", "600"))
    brief = {k: v for k, v in SETTINGS.items() if k != "space_settings"} | {"trials": 1}
    with pytest.raises(nas.NasError, match=r"timeout: longer than 0\.5 s"):
        search(
            f"{tmp_path}/hangs.py:make",
            "digits",
            "random",
            out=tmp_path / "run",
            settings=brief | {"trial_timeout": 0.5},
        )
    storage = journal_storage(tmp_path / "run" / JOURNAL)
    assert [t.state.name for t in storage.get_all_trials(0)] == ["FAIL"]


def test_what_a_worker_cannot_do_is_told_with_its_words(tmp_path, forked):
    (tmp_path / "here.py").write_text("import sys\nassert 'worker' not in sys.argv, 'not here'\n" + SLOW)
    brief = {k: v for k, v in SETTINGS.items() if k != "space_settings"}
    with pytest.raises(WorkersError, match=r"worker \d ended: (?s:.*)on import: AssertionError: not here"):
        search(
            f"{tmp_path}/here.py:make",
            "digits",
            "random",
            out=tmp_path / "run",
            settings=brief | {"workers": 2},
        )


def test_sigterm_on_the_command_line_saves_all_trials(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    brief = {k: v for k, v in SETTINGS.items() if k != "space_settings"} | {"trials": 27, "epochs": 5}
    command = [sys.executable, "-m", "nas", "search", "--space", f"{tmp_path}/slow.py:make"]
    command += ["--method", "random", "--workers", "2", *options(brief), "--out", str(tmp_path / "run")]
    root = str(Path(nas.__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if "trial 1:" in line or "trial 2:" in line:
                break
        pids = children(process.pid)
        assert len(pids) == 2
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 143, rest
    assert "the same command goes on from here" in rest
    until(lambda: not any(map(alive, pids)))
    trials = journal_storage(tmp_path / "run" / JOURNAL).get_all_trials(0)
    assert {t.state.name for t in trials} <= {"COMPLETE", "WAITING"}
    assert len(trials) < 27


def test_a_finished_result_says_nothing_of_workers(whole):
    assert load_result(whole.folder).history == whole.history
    assert json.loads((whole.folder / "run.json").read_text())["config"]["workers"] == 0


def test_a_search_whose_trials_all_fail_ends_as_it_does_with_one_worker(tmp_path, forked):
    with pytest.raises(NoModelError, match="the last 10 trials failed"):
        search(
            "toy",
            "digits",
            "random",
            out=tmp_path,
            settings=SETTINGS | {"workers": 2, "trials": 27, "trial": {"lr": 1e30}},
        )


def test_latency_beside_other_workers_is_warned_about(tmp_path):
    config = make_config(
        {"space": "toy", "method": "random", "objective": "-latency_ms", "workers": 2} | SETTINGS
    )
    job = prepare(config, tmp_path, progress=Recorder())[0]
    assert len(job_slots(job)) == 2
    assert any("a latency table is surer" in note for note in job.progress.notes)
