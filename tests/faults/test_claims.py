"""Who has which trial: leases by the observer's clock, late results refused, nothing asked for twice."""

import dataclasses
import errno
import fcntl
import inspect
import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
import torch

from nas.errors import ConfigError, DeviceError, ExhaustedError, StorageError, TrialError
from nas.registry import load
from nas.schedulers.scheduler import Fixed
from nas.searchers import RandomSearch, RegularizedEvolution
from nas.storage.journal import journal_storage
from nas.study import Study
from nas.training.resumable import Stopped
from nas.types import Trial
from nas.workers.claims import ATTEMPTS, Leased, LostError, owner_of
from nas.workers.coordinate import Stopwatch
from nas.workers.identity import Identity
from nas.workers.pool import Pool
from nas.workers.silence import OWNER, Silence
from nas.workers.turn import FileTurn, turn_of
from nas.workers.turns import NoTurnError

CELLS, TOY = load("nasbench201"), load("toy")
LEASE_S = 100.0


class Clock:
    """A monotonic clock that moves when it is told to."""

    def __init__(self):
        self.now = 1e6

    def __call__(self):
        return self.now


class Somewhere:
    """A worker on a machine of its own, so that nobody can look whether its process lives."""

    count = 0

    @classmethod
    def identity(cls, **changes):
        cls.count += 1
        own = Identity.of_this_process()
        return dataclasses.replace(own, place=f"machine {cls.count}", host=f"host{cls.count}", **changes)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def worker(tmp_path):
    """Makes workers on one study; each has its own view of the journal."""

    def make(
        *,
        clock=None,
        space=CELLS,
        identity=None,
        heir=False,
        lease_s=LEASE_S,
        searcher=None,
        saved=lambda _: 0,
    ):
        storage = journal_storage(tmp_path / "study.log")

        def claims(study):
            return Leased(
                storage,
                study._study_id,
                turn_of(storage, study._study_id),
                identity or Somewhere.identity(),
                lease_s=lease_s,
                heir=heir,
                saved=saved,
                clock=clock or Clock(),
            )

        scheduler = Fixed(searcher or RegularizedEvolution(5, 3), epochs=2)
        return Study(space, scheduler, storage, name="s", seed=1, claims=claims)

    return make


def scored(trial, stream):
    return {"val_acc": sum(trial.genotype) / 30 + 0.01 * stream.random()}


def pass_time(study, seconds):
    """Lets time pass as it does for somebody who looks on."""
    for _ in range(20):
        study.claims._silence._clock.now += seconds / 20
        study.sync()


def states(study):
    study.sync()
    return [(t.number, t.state) for t in study.history]


# -- asking -------------------------------------------------------------------------------------------------


def test_two_workers_never_get_the_same_trial_and_see_each_others(worker):
    workers = [worker() for _ in range(4)]
    asked = [study.ask() for study in workers]
    assert [t.number for t in asked] == [0, 1, 2, 3]
    assert len({t.genotype for t in asked}) == 4
    assert [t.beside for t in asked] == [(), (0,), (0, 1), (0, 1, 2)]
    workers[3].tell(asked[1], {"val_acc": 0.5}, 0.0)  # not its own
    workers[2].tell(asked[2], {"val_acc": 0.5}, 0.0)
    assert states(workers[1]) == [(0, "running"), (1, "running"), (2, "done"), (3, "running")]
    assert workers[2].ask().beside == (0, 1, 3)
    assert worker().history[:4] == workers[1].history


def test_who_asks_again_gets_what_it_has(worker):
    one = worker()
    assert one.ask() == one.ask()


def test_a_trial_known_to_a_proposal_is_what_its_evaluation_may_look_at(worker):
    one, two = worker(), worker()
    first, second = one.ask(), two.ask()
    one.tell(first, {"val_acc": 0.5}, 0.0)
    third = one.ask()
    assert third.beside == (1,)
    two.sync()
    assert second.known(two.history) == []
    assert third.known(two.history) == [two.history[0]]


def test_a_budget_is_never_overshot_however_many_ask_at_once(worker):
    studies = [worker(searcher=RandomSearch(), lease_s=600.0, clock=time.monotonic) for _ in range(6)]
    told = [[] for _ in studies]

    def work(study, told):
        def evaluate(trial, stream):
            told.append(trial.number)
            return scored(trial, stream)

        study.claims.wait = lambda: time.sleep(0.005)
        study.run(evaluate, trials=25)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(studies, told, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for numbers in told for number in numbers) == list(range(25))
    history = worker().history
    assert [t.number for t in history] == list(range(25))
    assert {t.state for t in history} == {"done"}
    assert len({t.genotype for t in history}) == 25


def test_the_end_of_the_space_waits_for_those_who_still_have_trials(worker):
    one, two = (worker(space=TOY, searcher=RandomSearch()) for _ in range(2))
    kept = two.ask()
    waits = []

    def wait():
        waits.append(len(one.history))
        two.tell(kept, {"val_acc": 1.0}, 0.0)

    one.claims.wait = wait
    assert "all 27 architectures" in one.run(scored, trials=100)
    assert waits == [27]
    assert [t.state for t in one.history] == ["done"] * 27
    with pytest.raises(ExhaustedError):
        two.ask()


def test_trials_that_are_written_when_done_cannot_be_shared(worker, tmp_path):
    claims = worker().claims
    with pytest.raises(ConfigError, match="not announced cannot be shared"):
        Study(
            CELLS,
            Fixed(RandomSearch()),
            journal_storage(tmp_path / "b.log"),
            name="b",
            announce=False,
            claims=lambda _: claims,
        )


# -- leases -------------------------------------------------------------------------------------------------


def test_a_silent_worker_loses_its_trial_after_the_lease_and_not_before(worker):
    gone, other = worker(), worker()
    left = gone.ask()
    other.sync()
    pass_time(other, 0.9 * LEASE_S)
    assert other.ask().number == 1
    pass_time(other, 0.2 * LEASE_S)
    again = other.ask()
    assert (again.number, again.genotype) == (0, left.genotype)
    assert owner_of(other.storage.get_trial(0))[1] == 2


def test_a_worker_that_beats_keeps_its_trial(worker):
    slow, other = worker(), worker()
    slow.ask()
    for beat in range(10):
        slow.storage.set_trial_user_attr(0, "beat", beat)
        pass_time(other, 0.6 * LEASE_S)
    assert other.ask().number == 1


def test_an_observer_that_was_frozen_accuses_nobody(worker):
    slow, other = worker(), worker()
    slow.ask()
    other.sync()
    other.claims._silence._clock.now += 100 * LEASE_S
    other.sweep()
    slow.storage.set_trial_user_attr(0, "beat", 1)
    pass_time(other, 0.9 * LEASE_S)
    assert other.ask().number == 1


def test_wall_clocks_that_jump_or_differ_change_nothing(worker, monkeypatch):
    class Elsewhen(datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) - timedelta(days=20_000)

    slow, other = worker(), worker()
    slow.ask()
    other.sync()
    monkeypatch.setattr("time.time", lambda: 4e9)
    monkeypatch.setattr("optuna.storages.journal._storage.datetime", Elsewhen)
    pass_time(other, 0.9 * LEASE_S)
    slow.storage.set_trial_user_attr(0, "beat", 7)
    pass_time(other, 0.9 * LEASE_S)
    assert other.ask().number == 1


@pytest.mark.parametrize("kind", [Silence, Leased, Stopwatch, Pool, FileTurn])
def test_leases_count_by_a_clock_that_nobody_sets(kind):
    """Tests give all of these clocks of their own, so that what they have without is looked at here."""
    assert inspect.signature(kind).parameters["clock"].default is time.monotonic


def test_a_coordinator_that_was_frozen_calls_no_trial_late(worker):
    one, clock = worker(), Clock()
    watch = Stopwatch(100.0, clock=clock)
    one.ask()
    one.sync()
    assert watch.late(one.under_way) == []
    clock.now += 1e5  # with its machine, perhaps, so that the trial has not run either
    assert watch.late(one.under_way) == []
    for _ in range(7):
        clock.now += 10
        assert watch.late(one.under_way) == []
    clock.now += 10
    assert [trial.number for trial in watch.late(one.under_way)] == [0]


def test_a_worker_known_to_be_dead_loses_its_trial_at_once(worker):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = Identity.of_this_process()
    ticks = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    identity = dataclasses.replace(started, worker="child", pid=child.pid, started=ticks)
    left, other = worker(identity=identity).ask(), worker()
    other.sweep()
    assert other.storage.get_trial(0).state == optuna.trial.TrialState.RUNNING
    child.kill()
    limit = time.monotonic() + 60
    while not identity.is_gone():  # a zombie is dead, too
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert other.ask() == left
    child.communicate()


def test_another_process_of_the_same_number_is_not_taken_for_the_dead_one(worker):
    own = Identity.of_this_process()
    assert not own.is_gone()
    assert dataclasses.replace(own, started=own.started - 1).is_gone()
    assert not dataclasses.replace(own, started=own.started - 1, place="elsewhere").is_gone()
    assert Identity.read(json.loads(json.dumps(own.to_dict()))) == own
    assert Identity.read({"pid": 3}) is None and Identity.read(None) is None


def test_a_trial_whose_workers_vanish_every_time_fails_as_lost(worker):
    other = worker()
    for attempt in range(1, ATTEMPTS + 1):
        assert worker().ask().number == 0
        other.sync()
        assert owner_of(other.storage.get_trial(0))[1] == attempt
        pass_time(other, 1.1 * LEASE_S)
        other.sweep()
    assert other.history[0].state == "failed"
    assert other.history[0].reason.startswith("lost: ")
    assert worker().ask().number == 1


def test_a_trial_that_gets_further_outlives_any_number_of_workers(worker):
    steps = [0]
    saved = lambda frozen: steps[0]  # noqa: E731
    other = worker(saved=saved)
    for _ in range(3 * ATTEMPTS):
        steps[0] += 5
        assert worker(saved=saved).ask().number == 0
        pass_time(other, 1.1 * LEASE_S)
        other.sweep()
        assert other.history[0].state == "running"
    for _ in range(ATTEMPTS - 1):
        assert worker(saved=saved).ask().number == 0
        pass_time(other, 1.1 * LEASE_S)
        other.sweep()
    assert other.history[0].reason.startswith("lost: ")


def test_a_sweep_lets_what_is_left_wait_for_others(worker):
    gone, other = worker(), worker()
    gone.ask()
    pass_time(other, 1.1 * LEASE_S)
    other.sweep()
    assert other.storage.get_trial(0).state == optuna.trial.TrialState.WAITING
    assert states(other) == [(0, "running")]
    assert worker().ask().number == 0


def test_an_heir_takes_what_the_leader_before_left_whatever_its_machine(worker):
    left = worker(identity=Somewhere.identity(leads=True)).ask()
    worker().ask()
    assert worker(identity=Somewhere.identity(leads=True)).ask().number == 2
    heir = worker(identity=Somewhere.identity(leads=True), heir=True)
    taken = heir.ask()
    assert taken == left and owner_of(heir.storage.get_trial(0))[1] == 1


# -- late results -------------------------------------------------------------------------------------------


def test_a_late_result_is_refused_and_no_error(worker, caplog):
    frozen, other = worker(), worker()
    left = frozen.ask()
    pass_time(other, 1.1 * LEASE_S)
    assert other.ask().number == left.number
    assert frozen.tell(left, {"val_acc": 0.9}, 1.0).state == "running"
    assert "trial 0 was taken over by another worker" in caplog.text
    told = other.tell(left, {"val_acc": 0.1}, 1.0)
    assert frozen.tell(dataclasses.replace(left), {"val_acc": 0.9}, 1.0) == told
    assert worker().history == [told]
    assert told.metrics == {"val_acc": 0.1}


def test_a_late_result_is_taken_where_nobody_has_begun_again(worker):
    frozen, other = worker(), worker()
    left = frozen.ask()
    pass_time(other, 1.1 * LEASE_S)
    other.sweep()
    assert frozen.tell(left, {"val_acc": 0.9}, 1.0).state == "done"
    assert states(other) == [(0, "done")]
    assert other.ask().number == 1


def test_of_two_results_the_first_counts(worker, monkeypatch):
    """Also when both workers think that the trial is theirs."""
    one, two = worker(), worker()
    trial = one.ask()
    two.sync()
    monkeypatch.setattr(two.claims, "owns", lambda trial_id: True)
    told = one.tell(trial, {"val_acc": 0.3}, 1.0)
    assert two.tell(trial, {"val_acc": 0.6}, 1.0) == told
    assert worker().history == [told]


def test_work_on_a_lost_trial_ends_before_the_next_step(worker):
    slow, other = worker(lease_s=0.2, clock=time.monotonic), worker()
    steps = []

    def evaluate(trial, stream):
        if trial.number > 0:
            return scored(trial, stream)
        other.storage.set_trial_user_attr(0, OWNER, other.claims.stamp()[OWNER])
        while True:
            steps.append(time.sleep(0.01))
            slow.claims.check()

    slow.run(evaluate, trials=3, stop=lambda: len(slow.history) == 3)
    assert [t.state for t in slow.history] == ["running", "done", "done"]
    assert owner_of(slow.storage.get_trial(0))[0] == other.claims.identity
    assert steps


def test_a_stopped_trial_is_given_back_at_once_as_if_not_begun(worker):
    one, other = worker(), worker()

    def evaluate(trial, stream):
        raise Stopped("saved")

    for _ in range(2 * ATTEMPTS):
        with pytest.raises(Stopped):
            one.run(evaluate, trials=3)
    assert owner_of(one.storage.get_trial(0))[1] == 0
    taken = other.ask()
    assert taken.number == 0 and owner_of(one.storage.get_trial(0))[1] == 1


def test_beats_go_on_during_a_long_step(worker):
    one = worker(lease_s=0.2, clock=time.monotonic)

    def evaluate(trial, stream):
        limit = time.monotonic() + 60
        while one.storage.get_trial(0).user_attrs.get("beat", 0) < 3 and time.monotonic() < limit:
            time.sleep(0.01)
        return scored(trial, stream)

    one.run(evaluate, trials=1)
    assert one.storage.get_trial(0).user_attrs["beat"] >= 3
    assert not [t for t in threading.enumerate() if t.name == "beat"]


def test_a_beat_that_cannot_be_written_does_not_end_the_trial(worker, monkeypatch, caplog):
    one = worker(lease_s=0.1, clock=time.monotonic)
    failed = threading.Event()

    def full(*_):
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(one.storage, "set_trial_user_attr", full)

    def evaluate(trial, stream):
        assert failed.wait(60)
        monkeypatch.undo()
        return scored(trial, stream)

    one.run(evaluate, trials=1)
    assert one.history[0].state == "done"
    assert "no sign of life could be written" in caplog.text


def test_an_overdue_trial_is_tried_once_more_and_then_fails(worker):
    one, coordinator = worker(), worker()
    one.ask()
    coordinator.sync()
    first = coordinator.under_way[0]
    coordinator.give_up(first, "longer than 60 s")
    assert coordinator.storage.get_trial(0).state == optuna.trial.TrialState.WAITING
    assert one.ask().number == 0
    coordinator.give_up(first, "longer than 60 s")
    coordinator.sync()
    second = coordinator.under_way[0]
    assert second.state == optuna.trial.TrialState.RUNNING
    coordinator.give_up(second, "longer than 60 s")
    assert coordinator.history[0].reason == "timeout: longer than 60 s"
    coordinator.give_up(second, "too late")
    assert coordinator.history[0].reason == "timeout: longer than 60 s"


def test_a_study_that_was_deleted_is_a_clear_error(worker):
    one = worker()
    one.ask()
    one.storage.delete_study(one.optuna_study._study_id)
    with pytest.raises(ConfigError, match="study 's' was deleted or renamed"):
        one.ask()


def test_a_device_that_fails_for_good_fails_its_trial_and_ends_the_process(worker):
    one = worker()

    def evaluate(trial, stream):
        if trial.number == 1:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return scored(trial, stream)

    with pytest.raises(
        DeviceError, match=r"nothing more can be computed on the device (?s:.*)device-side assert"
    ):
        one.run(evaluate, trials=5)
    assert [t.state for t in worker().history] == ["done", "failed"]
    assert one.history[1].reason.startswith("device: ")


# -- turns --------------------------------------------------------------------------------------------------


def test_who_does_not_get_a_turn_does_something_else(worker, tmp_path, monkeypatch):
    monkeypatch.setattr("nas.workers.turns.PATIENCE_S", 0.05)
    one = worker()
    waits = []

    def wait():
        waits.append(1)
        if len(waits) == 2:
            held.__exit__(None, None, None)

    one.claims.wait = wait
    held = FileTurn(tmp_path / "study.log.lock")()
    held.__enter__()
    one.run(scored, trials=2)
    assert len(waits) == 2 and one.ended == 2


def test_a_turn_ends_with_its_holder(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from nas.workers.turn import FileTurn
with FileTurn(Path({str(tmp_path / "x.lock")!r}))():
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nas.workers.turns.PATIENCE_S", 0.05)
            with pytest.raises(NoTurnError), FileTurn(tmp_path / "x.lock")():
                pass
        holder.kill()
        with FileTurn(tmp_path / "x.lock")():
            pass


def test_a_turn_is_taken_from_a_holder_that_is_frozen_and_it_notices(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.workers.turns.PATIENCE_S", 0.01)
    clock = Clock()
    frozen, other = (FileTurn(tmp_path / "x.lock", cut_off_s=300, clock=clock) for _ in range(2))
    with frozen() as check:
        for _ in range(3):
            check()
            with pytest.raises(NoTurnError, match=r"x\.lock has been locked"), other():
                pass
            clock.now += 101
        check()
        with pytest.raises(NoTurnError, match=r"x\.lock has been locked"), other():
            pass
        with pytest.raises(NoTurnError, match="the turn was lost"):
            check()
        with other(), pytest.raises(NoTurnError, match="the turn was lost"):
            check()
    with frozen() as check:
        check()


def test_a_turn_is_not_taken_where_holders_change(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.workers.turns.PATIENCE_S", 0.01)
    clock = Clock()
    busy, other = (FileTurn(tmp_path / "x.lock", cut_off_s=300, clock=clock) for _ in range(2))
    for _ in range(6):
        time.sleep(0.005)
        with busy() as check:
            with pytest.raises(NoTurnError), other():
                pass
            clock.now += 200
            check()


def test_a_proposal_whose_turn_was_lost_is_not_written(worker, tmp_path):
    one, other = worker(), worker()

    class Slow:
        def ask(self, space, history, stream):
            if not other.history:  # as if the process had been frozen here
                (tmp_path / "study.log.lock").unlink()
                other.ask()
            return RandomSearch().ask(space, history, stream), 2

    one.scheduler = Slow()
    assert one._next(5) is None
    assert [t.number for t in worker().history] == [0]
    assert one._next(5).number == 1


def test_a_trial_whose_number_another_one_got_is_told_under_its_own(worker, tmp_path, monkeypatch):
    """As if the process had been frozen between its last look at the turn and the writing."""
    one, other = worker(), worker(searcher=RandomSearch())
    create, taken = one.storage.create_new_trial, []

    def late(study_id, template):
        if not taken:
            (tmp_path / "study.log.lock").unlink()  # as others do after a while
            taken.append(other.ask())
        return create(study_id, template)

    monkeypatch.setattr(one.storage, "create_new_trial", late)
    trial = one.ask()
    assert (taken[0].number, trial.number) == (0, 1)
    one.tell(trial, {"val_acc": 0.75}, 1.0)
    other.tell(taken[0], {"val_acc": 0.25}, 1.0)
    assert [(t.genotype, t.metrics["val_acc"]) for t in worker().history] == [
        (taken[0].genotype, 0.25),
        (trial.genotype, 0.75),
    ]
    one.sync()
    assert one.history == worker().history


@pytest.mark.parametrize("call", ["flock", "utime"])
def test_a_turn_that_the_file_system_refuses_is_an_error_that_names_the_mount(tmp_path, monkeypatch, call):
    monkeypatch.setattr("nas.workers.turns.PATIENCE_S", 0.5)
    turn, left = FileTurn(tmp_path / "x.lock"), [2]
    place = fcntl if call == "flock" else os
    real = getattr(place, call)

    def fail(*arguments):
        if left[0] == 0:
            return real(*arguments)
        left[0] -= 1
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(place, call, fail)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with turn():  # after a fault that passed
        assert left == [0]
    left[0] = 10**6
    with pytest.raises(StorageError, match=r"x\.lock: No locks available; check the file system /"), turn():
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    left[0] = 0
    with turn():
        pass


def test_a_turn_follows_no_link(tmp_path):
    (tmp_path / "x.lock").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(StorageError, match=r"x\.lock: Too many levels of symbolic links"),
        FileTurn(tmp_path / "x.lock")(),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_storage_without_turns_is_refused():
    with pytest.raises(ConfigError, match=r"need a journal or a PostgreSQL database, got InMemoryStorage"):
        turn_of(optuna.storages.InMemoryStorage(), 0)


# -- silence ------------------------------------------------------------------------------------------------


def test_silence_counts_from_the_last_change_seen(worker):
    study, clock = worker(), Clock()
    study.ask()
    silence = Silence(50.0, clock=clock)
    seen = []
    for beat in (None, None, 1, 1, 1, 2):
        if beat:
            study.storage.set_trial_user_attr(0, "beat", beat)
        clock.now += 10
        trials = study.storage.get_all_trials(0)
        silence.look(trials)
        seen.append(silence.seconds(trials[0]))
    assert seen == [0, 10, 0, 10, 20, 0]
    silence.look([])
    assert silence.seconds(trials[0]) == 0


def test_a_failed_trial_is_the_same_for_all(worker):
    one, two = worker(), worker()
    trial = one.ask()
    one.fail(trial, TrialError("oom", "no memory"), 2.0)
    assert two.ask().number == 1
    assert two.history[0] == Trial(0, trial.genotype, 2, "failed", {}, 2.0, "oom: no memory")
    assert os.getpid() == one.claims.identity.pid
    assert isinstance(LostError("x"), Stopped)
