"""Trials in processes of their own: what dies, hangs or cannot be sent costs its own trial alone."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from failing_trials import Scored
from killing import run_killed

from nas.errors import ConfigError, Stopped
from nas.searchers.evolution import RegularizedEvolution
from nas.searchers.scheduler import Fixed
from nas.space.loading import load
from nas.study.storage import open_storage
from nas.study.study import Study
from nas.study.workers import Borrowed, Processes, Workers

CELLS = load("nasbench201")


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def processes(tmp_path):
    found = Processes()
    yield found
    found.close()


def make(path, **settings):
    evolution = Fixed(RegularizedEvolution(4, 2), epochs=1)
    return Study(CELLS, evolution, open_storage(path / "study.log"), name="s", **({"seed": 1} | settings))


def timeless(history):
    return [(t.number, t.genotype, t.state, dict(t.metrics)) for t in history]


def test_each_failure_costs_its_own_trial_alone(tmp_path, processes):
    does = {"n1": "dies once", "n2": "dies", "n3": "raises", "n4": "hangs"}
    workers = Workers(processes.slots(2), tmp_path, timeout_s=2.0)
    study = make(tmp_path)
    study.run(Scored(tmp_path, **does), trials=7, workers=workers)
    failed = {t.number: t.reason for t in study.history if t.state == "failed"}
    assert failed.keys() == {2, 3, 4}
    assert failed[2].startswith("crash: its worker was lost 3 times")
    assert failed[3].startswith("error: ValueError: the user's")
    assert failed[4] == "timeout: longer than 2 s, twice"
    assert len((tmp_path / "begun-2").read_text()) == 3 and len((tmp_path / "begun-4").read_text()) == 2
    assert [t.number for t in study.history] == list(range(7))


def test_with_workers_the_same_seed_gives_the_same_study_whatever_ends_first(tmp_path, processes):
    found = []
    for slow in ("n1", "n6"):
        place = tmp_path / slow
        place.mkdir()
        study = make(place)
        workers = Workers(processes.slots(3), place)
        study.run(Scored(place, **{slow: "is slow"}), trials=10, workers=workers)
        found.append(timeless(study.history))
    assert found[0] == found[1]


def test_an_unordered_study_never_waits_for_a_slow_trial(tmp_path, processes):
    study, workers = make(tmp_path), Workers(processes.slots(2), tmp_path, ordered=False)
    ended = []
    study.run(
        Scored(tmp_path, n0="waits for trial 3"),
        trials=8,
        workers=workers,
        on_trial=lambda t: ended.append(t.number),
    )
    assert sorted(ended) == list(range(8)) and ended[0] != 0


class Meeting:
    """A trial that ends once so many have begun."""

    def __init__(self, place, count):
        self.place, self.count = place, count

    def __call__(self, trial, rng):
        (self.place / f"met-{trial.number}").touch()
        until = time.monotonic() + 5
        while len(list(self.place.glob("met-*"))) < self.count:
            if time.monotonic() > until:
                raise TimeoutError
            time.sleep(0.01)
        return {"val_acc": 0.5}


@pytest.mark.parametrize("count", [3, 8])
def test_as_many_trials_as_there_are_workers_begin_at_once(tmp_path, count):
    with ThreadPoolExecutor(count) as executor:
        workers = Workers([Borrowed(executor) for _ in range(count)], tmp_path)
        study = make(tmp_path)
        study.run(Meeting(tmp_path, count), trials=count, workers=workers)
    assert [t.state for t in study.history] == ["done"] * count


def test_any_executor_will_do(tmp_path):
    with ThreadPoolExecutor(2) as executor:
        workers = Workers([Borrowed(executor), Borrowed(executor)], tmp_path)
        study = make(tmp_path)
        study.run(Scored(tmp_path, n1="raises"), trials=6, workers=workers)
    assert [t.state for t in study.history] == ["done", "failed", "done", "done", "done", "done"]


def test_a_study_that_is_stopped_leaves_no_process_and_goes_on(tmp_path, processes):
    asked = []

    def stop():
        asked.append(1)
        if len(asked) > 12:
            raise Stopped("enough")
        return False

    slow = Scored(tmp_path, **{f"n{i}": "is slow" for i in range(9)})
    with pytest.raises(Stopped):
        make(tmp_path).run(slow, trials=9, workers=Workers(processes.slots(2), tmp_path, stop=stop))
    again = make(tmp_path)
    assert again.ended < 9
    again.run(slow, trials=9, workers=Workers(processes.slots(2), tmp_path))
    whole = tmp_path / "whole"
    whole.mkdir()
    other = make(whole)
    other.run(Scored(whole), trials=9, workers=Workers(processes.slots(2), whole))
    assert timeless(again.history) == timeless(other.history)


def test_what_cannot_be_sent_is_refused_in_words(tmp_path, processes):
    held = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be sent to other processes"):
        workers = Workers(processes.slots(1), tmp_path)
        make(tmp_path).run(lambda *_: {"val_acc": float(bool(held))}, trials=1, workers=workers)


def search_killed(folder):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = Path(folder)
    processes = Processes()
    slow = Scored(place, **{f"n{i}": "is slow" for i in range(0, 12, 3)})
    make(place).run(slow, trials=12, workers=Workers(processes.slots(2), place))
    processes.close()


def test_killed_at_random_points_a_study_by_workers_is_the_uninterrupted_one(tmp_path):
    run_killed(search_killed, tmp_path, kills=2, longest_s=2.0, seed=2)
    whole = tmp_path / "whole"
    whole.mkdir()
    search_killed(whole)
    assert timeless(make(tmp_path).history) == timeless(make(whole).history)


PROGRAM = """
import nas

result = nas.search(
    space="toy", task="digits", method="random", out="run",
    settings={"trials": 3, "epochs": 1, "workers": 2, "baselines": False, "export": False, "pictures": False,
              "search_images": 128, "space_settings": {"width": 4}, "retrain": {"epochs": 1}, "top_k": 1},
)
print(len(result.history))
"""


def test_a_program_needs_no_main_guard(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["3"]
