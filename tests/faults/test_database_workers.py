"""Several workers on one PostgreSQL database: turns, leases, servers that go away."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from forked import forked
from jobs import SMALL, Recorder
from postgres import PASSWORD, postgres
from typer.testing import CliRunner

from nas.cli import app
from nas.errors import ConfigError
from nas.job.search_run import search
from nas.registry import load
from nas.schedulers.scheduler import Fixed
from nas.searchers import RandomSearch
from nas.storage.address import Address
from nas.storage.patience import Patience
from nas.storage.run import RunStorage, open_storage
from nas.study import Study
from nas.training.resumable import Stopped
from nas.workers.claims import Leased, owner_of
from nas.workers.identity import Identity
from nas.workers.turn import turn_of
from nas.workers.turn_in_database import PostgresTurn
from nas.workers.turns import NoTurnError

__all__ = ["forked", "postgres"]
CELLS = load("nasbench201")
HERE = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def address(postgres):
    return Address(postgres.database())


def open_run(address, seconds=60.0):
    return RunStorage(open_storage(address, patience=Patience(seconds, longest_s=0.2)), run="r-1")


def worker(address, *, lease_s=600.0):
    storage = open_run(address)

    def claims(study):
        turn = turn_of(storage, study._study_id)
        return Leased(storage, study._study_id, turn, Identity.of_this_process(), lease_s=lease_s)

    return Study(CELLS, Fixed(RandomSearch(), 1), storage, name="search", seed=1, claims=claims)


def scored(trial, stream):
    return {"val_acc": sum(trial.genotype) / 30}


def test_workers_share_a_budget_without_a_trial_too_many(address):
    studies = [worker(address) for _ in range(4)]
    told = [[] for _ in studies]

    def work(study, told):
        def evaluate(trial, stream):
            told.append(trial.number)
            return scored(trial, stream)

        study.claims.wait = lambda: time.sleep(0.01)
        study.run(evaluate, trials=16)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(studies, told, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for numbers in told for n in numbers) == list(range(16))
    history = worker(address).history
    assert [(t.number, t.state) for t in history] == [(n, "done") for n in range(16)]
    assert len({t.genotype for t in history}) == 16


def test_a_dead_workers_trial_goes_to_another(address):
    code = f"""
import sys, time
sys.path[:0] = {HERE!r}
from test_database_workers import worker, Address
study = worker(Address({address.secret!r}))
print(study.ask().number, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as dying:
        assert dying.stdout.readline() == "0\n"
        other = worker(address)
        other.sweep()
        assert other.storage.get_trial(other.under_way[0]._trial_id).state.name == "RUNNING"
        dying.kill()
    assert other.ask().number == 0
    assert owner_of(other.storage.get_trial(other.ledger.id_of(0)))[1] == 2
    other.tell(other.history[0], {"val_acc": 1.0}, 0.0)
    assert worker(address).history == other.history


def test_a_frozen_holder_of_the_turn_is_cut_off_by_the_server_and_notices(address, monkeypatch):
    monkeypatch.setattr("nas.workers.turns.PATIENCE_S", 0.3)
    storages = [open_storage(address) for _ in range(2)]
    frozen, other = (PostgresTurn(storage, 7, cut_off_s=4) for storage in storages)
    with frozen() as check:
        check()
        with pytest.raises(NoTurnError, match="no turn in time"), other():
            pass
        limit = time.monotonic() + 30  # half of what every transaction is allowed
        while True:
            try:
                with other() as own:
                    own()
                break
            except NoTurnError:
                assert time.monotonic() < limit
        with pytest.raises(NoTurnError, match="the turn was lost"):
            check()
    with frozen() as check:  # its connection is made anew
        check()


def test_turns_of_other_studies_are_others(address):
    storage, other = open_storage(address), open_storage(address)
    with turn_of(storage, 1)(), turn_of(other, 2)():
        pass


def test_a_connection_is_kept_for_turns_that_come_often_and_for_no_others(address):
    storage, now = open_storage(address), 0.0
    pool = storage.database.engine.pool
    turn = PostgresTurn(storage, 7, clock=lambda: now)

    def open_after(seconds):
        """How many connections are open after a trial that took so long."""
        nonlocal now
        now += seconds
        with turn():
            storage.get_all_studies()
            most.append(pool.checkedout())
        return sum(
            not record.dbapi_connection.closed for record in pool._pool.queue if record.dbapi_connection
        )

    most = []
    assert [open_after(s) for s in (600, 600, 1, 1, 600, 1)] == [1, 1, 2, 2, 1, 2]
    assert max(most) <= 2


def test_asking_outlasts_a_server_that_restarts(postgres, address):
    study = worker(address)
    study.run(scored, trials=2)
    postgres.stop(signal.SIGQUIT)
    threading.Timer(0.5, postgres.start).start()
    study.run(scored, trials=4)
    assert [t.state for t in worker(address).history] == ["done"] * 4


def test_sqlite_has_no_turns(tmp_path):
    storage = open_storage(Address(f"sqlite:///{tmp_path / 'x.db'}"))
    with pytest.raises(ConfigError, match="several workers need a journal or a PostgreSQL database"):
        turn_of(storage, 0)


# -- whole jobs ---------------------------------------------------------------------------------------------

SETTINGS = {k: v for k, v in SMALL.items() if k not in ("top_k_epochs", "seeds")} | {"trials": 5, "top_k": 1}


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def stopped(folder, address):
    progress = Recorder()
    with pytest.raises(Stopped):
        search(
            "toy",
            "digits",
            "random",
            out=folder,
            settings=SETTINGS | {"storage": address},
            progress=progress,
            stop=lambda: len(progress.lines) >= 2,
        )
    return json.loads((folder / "run.json").read_text())["run"]


def test_a_worker_joins_by_the_database_alone(tmp_path, address, monkeypatch):
    run = stopped(tmp_path / "run", address)
    unknown = call("worker", "--storage", address.secret, "--study", "other-1")
    assert (unknown.exit_code, "there are no trials to join here" in unknown.stderr) == (2, True)
    monkeypatch.setenv("NAS_STORAGE", address.secret)  # the password of what is given is masked
    done = call("worker", "--storage", address, "--study", run, "--scratch", tmp_path / "scratch")
    assert done.exit_code == 0, done.stderr
    assert "nothing is left to do: 5 trials done" in done.stderr
    assert PASSWORD not in done.stderr + done.stdout
    result = search("toy", "digits", "random", out=tmp_path / "run", settings=SETTINGS | {"storage": address})
    assert result.metrics["trials"] == 5


def test_a_worker_joins_by_the_folder_and_finds_the_database(tmp_path, address, monkeypatch):
    stopped(tmp_path / "run", address)
    refused = call("worker", tmp_path / "run")
    assert (refused.exit_code, "NAS_STORAGE" in refused.stderr) == (2, True)
    monkeypatch.setenv("NAS_STORAGE", address.secret)
    done = call("worker", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    assert "nothing is left to do: 5 trials done" in done.stderr


def test_a_job_with_workers_on_a_database(tmp_path, address, forked):
    settings = SETTINGS | {"storage": address, "workers": 2}
    result = search("toy", "digits", "random", out=tmp_path / "run", settings=settings)
    alone = search("toy", "digits", "random", out=tmp_path / "alone", settings=SETTINGS)
    assert [t.metrics for t in result.history] == [t.metrics for t in alone.history]
    found = [p for p in (tmp_path / "run").rglob("*") if p.is_file() and PASSWORD.encode() in p.read_bytes()]
    assert found == []
