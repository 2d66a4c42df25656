"""Whole searches by several workers: killed, frozen, drained, late, and in the end as if nothing had been."""

import os
import signal

import pytest
from soak import alive, begin, check, children, joined, read, soak, until

from nas.workers.claims import owner_of

BRIEF = {"workers": 3, "lease_s": 60.0, "steps": 8, "step_s": 0.02}
LONGER = BRIEF | {"step_s": 0.06}
"""So that there is time for a fault before the end, also where the test has to wait for a processor."""


def first_trials(folder, process, number):
    """Waits until so many trials have ended; returns the worker processes."""
    until(
        lambda: not process.is_alive() or ((folder / "study.log").exists() and read(folder).ended >= number)
    )
    assert process.is_alive()
    return children(process.pid)


def stop_one_at_work(folder, pids):
    """Stops a process that has a trial under way; the rest of the search must not end without it."""
    while True:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            if any(owner_of(trial)[0].pid == pid for trial in read(folder).under_way):
                return pid
            os.kill(pid, signal.SIGCONT)


def end(process):
    process.join()
    assert process.exitcode == 0


def test_without_faults_every_trial_is_evaluated_once_and_step_by_step(tmp_path):
    end(begin(tmp_path, trials=12, **BRIEF))
    assert check(tmp_path, 12) == {"told": 12, "told late": 0, "done": 12}
    for number in range(12):
        assert (tmp_path / f"steps-{number}").read_text().split() == list("01234567")


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_each_trial_is_told_once(tmp_path, seed):
    found = soak(tmp_path, trials=24, workers=3, kills=10, seed=seed, longest_s=0.2, steps=12)
    assert found["told"] == 24
    assert found["restarts"] == 1


def test_a_killed_coordinator_leaves_nobody_behind_and_the_next_one_goes_on(tmp_path):
    process = begin(tmp_path, trials=16, **LONGER)
    orphans = first_trials(tmp_path, process, 4)
    assert orphans
    process.kill()
    process.join()
    until(lambda: not any(map(alive, orphans)))
    study = read(tmp_path)
    assert study.ended < 16
    assert {trial.state.name for trial in study.under_way} <= {"WAITING"}
    end(begin(tmp_path, trials=16, **BRIEF))
    assert check(tmp_path, 16)["done"] == 16
    for number in range(16):  # what was saved was not done again
        assert (tmp_path / f"steps-{number}").read_text().split() == list("01234567")


def test_sigterm_drains_the_workers_and_nothing_is_lost_or_repeated(tmp_path):
    process = begin(tmp_path, trials=16, **LONGER)
    pids = first_trials(tmp_path, process, 4)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143
    assert not any(map(alive, pids))
    study = read(tmp_path)
    assert {trial.state.name for trial in study.under_way} <= {"WAITING"}
    assert all(owner_of(trial)[1] == 0 for trial in study.under_way)
    end(begin(tmp_path, trials=16, **BRIEF))
    assert check(tmp_path, 16)["done"] == 16
    for number in range(16):
        assert (tmp_path / f"steps-{number}").read_text().split() == list("01234567")


def test_a_frozen_worker_is_replaced_and_its_trial_done_by_another(tmp_path):
    settings = LONGER | {"lease_s": 6.0}
    process = begin(tmp_path, trials=14, **settings)
    frozen = stop_one_at_work(tmp_path, first_trials(tmp_path, process, 2))
    until(lambda: not alive(frozen))
    end(process)
    assert check(tmp_path, 14)["done"] == 14
    assert "gave no sign of life" in (tmp_path / "coordinator.log").read_text()


def test_a_worker_that_was_frozen_beyond_its_lease_comes_back_too_late(tmp_path):
    """Nobody can kill one that joined from elsewhere: it goes on, and what it then tells is refused."""
    pace = {"trials": 3, "lease_s": 2.0, "steps": 1, "step_s": 2.0}
    frozen = begin(tmp_path, joined, **pace)
    until((tmp_path / "begun-0").exists)
    os.kill(frozen.pid, signal.SIGSTOP)
    other = begin(tmp_path, joined, **pace)
    until(lambda: read(tmp_path).ended == 3)
    os.kill(frozen.pid, signal.SIGCONT)
    end(other)
    end(frozen)
    assert check(tmp_path, 3) == {"told": 3, "told late": 0, "done": 3}
    study = read(tmp_path)
    owners = {owner_of(study.storage.get_trial(number))[0].pid for number in range(3)}
    assert owners == {other.pid}
    assert owner_of(study.storage.get_trial(0))[1] == 2


def test_a_trial_that_takes_too_long_is_begun_once_more_and_then_fails(tmp_path):
    settings = BRIEF | {"workers": 1, "steps": 1, "step_s": 600.0, "trial_timeout_s": 0.3}
    process = begin(tmp_path, trials=1, **settings)
    end(process)
    assert read(tmp_path).history[0].reason == "timeout: longer than 0.3 s"
    assert check(tmp_path, 1) == {"told": 1, "told late": 0, "failed": 1}
