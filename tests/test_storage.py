"""Histories in databases: no password is shown, and no outage, kill or second teller spoils a history."""

import logging
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from types import SimpleNamespace

import optuna
import pytest
from killing import run_killed
from postgres import PASSWORD, QUOTED, Proxy, postgres
from sqlalchemy import event

from nas.errors import ConfigError
from nas.registry import load
from nas.schedulers.scheduler import Fixed
from nas.searchers import RandomSearch
from nas.seeding import rng
from nas.storage.address import Address, check_writers, find_address, writers
from nas.storage.finishing import finish_trial
from nas.storage.journal import JOURNAL, journal_storage
from nas.storage.parked import Park
from nas.storage.patience import Patience
from nas.storage.run import keep_history, open_storage, run_storage
from nas.study import Study
from nas.training.resumable import Stopped
from nas.types import Trial

__all__ = ["postgres"]
CELLS = load("nasbench201")
QUICK = Patience(20, pause_s=0.01, longest_s=0.1)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.delenv("NAS_STORAGE", raising=False)
    # Optuna waits for up to two seconds before it adds a trial again.
    monkeypatch.setattr("optuna.storages._rdb.storage.random", SimpleNamespace(random=lambda: 0.05))


@pytest.fixture
def sqlite(tmp_path):
    return Address(f"sqlite:///{tmp_path / 'histories.db'}")


@pytest.fixture(scope="module")
def database(postgres):
    return Address(postgres.database())


def scored(trial, stream):
    return {"val_acc": sum(trial.genotype) / 30 + 0.01 * stream.random()}


def study(storage, name="s", *, announce=True):
    return Study(CELLS, Fixed(RandomSearch()), storage, name=name, seed=1, announce=announce)


def told(history):
    return [(t.number, t.genotype, t.state, dict(t.metrics)) for t in history]


def expected(tmp_path, trials):
    (tmp_path / "expected").mkdir()
    whole = study(journal_storage(tmp_path / "expected" / JOURNAL))
    whole.run(scored, trials=trials)
    return told(whole.history)


def run_of(folder, address, run="run", **settings):
    return run_storage(folder, address, run=run, **({"patience": QUICK} | settings))


def everything_said(error):
    """All that a traceback could print of an exception and of those behind it."""
    said, seen = [], []
    while error is not None and error not in seen:
        seen.append(error)
        said += [*traceback.format_exception(error), repr(error), str(vars(error))]
        error = error.__cause__ or error.__context__
    return "".join(said)


# -- addresses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:secret@h/d", "postgresql+psycopg://me:***@h/d"),
        ("postgresql://me:secret@h:5433/d", "postgresql+psycopg://me:***@h:5433/d"),
        ("postgresql://me:sec/ret@h/d", "postgresql+psycopg://me:***@h/d"),
        ("postgresql://me@h/d?password=secret", "postgresql+psycopg://me@h/d?password=%2A%2A%2A"),
        ("postgresql://me:secret@h/d?sslpassword=secret", "me:***@h/d?sslpassword=%2A%2A%2A"),
        ("postgresql+psycopg:///d", "postgresql+psycopg:///d"),
    ],
)
def test_an_address_shows_no_password(url, shown):
    address = Address(url)
    for text in (str(address), repr(address), f"{address}", f"{[address]}"):
        assert "secret" not in text and "ret@" not in text
    assert shown in address and address.is_masked is False
    for copied in (pickle.loads(pickle.dumps(address)), Address(address.secret)):
        assert (copied, copied.secret) == (address, address.secret)


def test_the_file_of_sqlite_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Address("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "secret",
            "mysql://me:secret@h/d",
            "redis://:secret@h",
            "://me:secret@h",
            "sqlite://",
            "sqlite:///:memory:",
        ),
        *(
            "postgresql://me:secret@secret@h/d",
            "postgresql://me:x@h:secret/d",
            "postgresql+psycopg2://me:secret@h/d",
        ),
    ],
)
def test_what_is_no_address_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError, match=r"sqlite:///FILE|postgresql\+psycopg://USER") as caught:
        Address(url)
    assert "secret" not in everything_said(caught.value)


def test_the_password_comes_back_from_the_environment_only(monkeypatch):
    whole, masked = (Address(f"postgresql://me:{word}@h/d") for word in ("secret", "***"))
    assert find_address(None) is None
    assert find_address(whole) is whole
    with pytest.raises(ConfigError, match=r"me:\*\*\*@h/d, whose password is masked; .* NAS_STORAGE"):
        find_address(masked)
    with pytest.raises(ConfigError, match="masked, so it cannot be connected to"):
        open_storage(masked)
    monkeypatch.setenv("NAS_STORAGE", whole.secret)
    assert find_address(masked).secret == find_address(None).secret == whole.secret
    monkeypatch.setenv("NAS_STORAGE", "postgresql://me:secret@other/d")
    with pytest.raises(ConfigError, match="must be the same database") as caught:
        find_address(masked)
    assert "secret" not in str(caught.value)


def test_how_many_may_write(sqlite):
    postgres = Address("postgresql://h/d")
    assert (writers(None), writers(sqlite), writers(postgres)) == (None, 1, None)
    check_writers(sqlite, 1)
    check_writers(postgres, 100)
    with pytest.raises(ConfigError, match="takes 1 worker, not 2; leave storage out"):
        check_writers(sqlite, 2)


# -- what cannot be opened ------------------------------------------------------------------------------


def refused(url):
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        open_storage(url)
    assert time.monotonic() - begun < 10
    said = everything_said(caught.value)
    assert PASSWORD not in said and QUOTED not in said
    return str(caught.value)


def test_databases_that_cannot_be_used_are_named_at_once(postgres):
    url = postgres.database()
    server, _, name = url.rpartition("/")
    assert "password authentication failed" in refused(url.replace(QUOTED, "wrong"))
    assert f'"{name}x" does not exist; make it with createdb' in refused(f"{url}x")
    assert "Connection refused" in refused(server.replace(str(postgres.port), "1") + "/d")
    assert "resolve" in refused(f"postgresql://me:{QUOTED}@no-such-host.invalid/d")
    postgres.run("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    assert "must be able to make tables" in refused(url.replace(f"searcher:{QUOTED}", "guest:guest"))


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "timeout" in refused(f"postgresql://me:{QUOTED}@127.0.0.1:{port}/d?connect_timeout=2")


def test_a_server_without_a_free_connection_gets_advice(postgres):
    import psycopg

    url, taken = postgres.database(), []
    with pytest.raises(psycopg.OperationalError):
        while True:
            taken.append(psycopg.connect(postgres.dsn))
    try:
        assert "raise its max_connections, or put pgbouncer" in refused(url)
    finally:
        for connection in taken:
            connection.close()


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'nas-engine[postgres]'" in refused(f"postgresql://me:{QUOTED}@h/d")


def test_sqlite_files_that_cannot_be_used_are_named(tmp_path):
    assert "unable to open" in refused(f"sqlite:///{tmp_path}/absent/a.db")
    (tmp_path / "poem").write_text("no database at all\n" * 100)
    assert "file is not a database" in refused(f"sqlite:///{tmp_path}/poem")


def test_many_may_make_the_tables_at_once(postgres):
    url, failed = postgres.database(), []

    def work():
        try:
            open_storage(url).database.close()
        except ConfigError as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# -- one history ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("announce", [True, False])
@pytest.mark.parametrize("where", ["sqlite", "database"])
def test_a_history_is_the_same_wherever_it_is_kept(tmp_path, request, where, announce):
    address = request.getfixturevalue(where)
    run = f"same-{announce}"
    study(run_of(tmp_path, address, run), announce=announce).run(scored, trials=4)
    resumed = study(run_of(tmp_path, address, run), announce=announce)
    resumed.run(scored, trials=8)
    assert told(resumed.history) == expected(tmp_path, 8)
    assert not list(tmp_path.glob("parked/*"))


def test_runs_in_one_database_do_not_see_each_other(tmp_path, sqlite):
    one, two = run_of(tmp_path, sqlite, "one"), run_of(tmp_path, sqlite, "two")
    study(one, "search").run(scored, trials=3)
    study(two, "search").run(scored, trials=2)
    study(two, "random").run(scored, trials=1)
    assert [s.study_name for s in two.get_all_studies()] == ["search", "random"]
    assert len(study(two, "search").history) == 2
    names = [s.study_name for s in open_storage(sqlite).get_all_studies()]
    assert names == ["one/search", "two/search", "two/random"]


def test_a_history_is_copied_into_a_journal(tmp_path, sqlite):
    storage = run_of(tmp_path, sqlite)
    whole = study(storage, "search")
    whole.run(scored, trials=5)
    left = whole.ask()
    keep_history(storage, tmp_path)
    keep_history(storage, tmp_path)
    assert Study.read(tmp_path, "search", CELLS) == whole.history and whole.history[-1] == left
    assert not list(tmp_path.glob(".tmp-*")) and not (tmp_path / "parked").exists()


def test_workers_take_one_number_each_and_one_connection(tmp_path, postgres, database):
    study(run_of(tmp_path, database, "many"))
    workers = [study(run_of(tmp_path, database, "many")) for _ in range(3)]
    told_by = {}

    def work(worker):
        for _ in range(8):
            trial = worker.ledger.frozen(Trial(0, CELLS.sample(rng(0)), 1))
            trial_id = worker.storage.create_new_trial(worker.optuna_study._study_id, trial)
            number = worker.storage.get_trial(trial_id).number
            told_by[number] = 1.0 * id(worker)
            outcome = worker.ledger.frozen(
                Trial(number, CELLS.sample(rng(0)), 1, "done", {"val_acc": told_by[number]})
            )
            assert finish_trial(worker.storage, worker.optuna_study._study_id, number, outcome)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = study(run_of(tmp_path, database, "many")).history
    assert {t.number: t.metrics["val_acc"] for t in history} == told_by and len(told_by) == 24
    pools = [worker.storage.inner.database.engine.pool for worker in workers]
    assert [pool.checkedin() + pool.checkedout() for pool in pools] == [1, 1, 1]
    assert {pool.size() + pool._max_overflow for pool in pools} == {2}  # with that for turns
    with workers[0].storage.inner.database.engine.connect() as connection:
        shown = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar()
    assert shown == "1min"  # a frozen worker does not hold up the others for ever


def search_killed(folder, url):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study(run_of(folder, Address(url), "killed")).run(slowly, trials=20)


def slowly(trial, stream):
    time.sleep(0.01)
    return scored(trial, stream)


@pytest.mark.parametrize("where", ["sqlite", "database"])
def test_killed_at_random_points_the_history_is_the_uninterrupted_one(tmp_path, request, where):
    address = request.getfixturevalue(where)
    run_killed(search_killed, tmp_path, address.secret, kills=4, longest_s=0.3, seed=1)
    assert told(study(run_of(tmp_path, address, "killed")).history) == expected(tmp_path, 20)


@pytest.mark.parametrize("where", ["journal", "sqlite", "database", "memory"])
def test_the_first_to_tell_wins_and_telling_again_changes_nothing(tmp_path, request, where):
    if where == "memory":
        storage = optuna.storages.InMemoryStorage()
    else:
        storage = run_of(tmp_path, None if where == "journal" else request.getfixturevalue(where), "first")
    first, second = study(storage), study(storage)
    trial = first.ask()
    second.sync()
    won = first.tell(trial, {"val_acc": 0.5}, 1.0)
    assert second.tell(trial, {"val_acc": 0.75}, 2.0) == won
    assert study(storage).history == first.history == second.history == [won]
    outcome = first.ledger.frozen(won)
    assert finish_trial(storage, first.optuna_study._study_id, 0, outcome)
    assert not finish_trial(storage, first.optuna_study._study_id, 0, second.ledger.frozen(trial))


def test_two_journal_processes_that_tell_at_the_same_moment_agree(tmp_path):
    one, two = journal_storage(tmp_path / JOURNAL), journal_storage(tmp_path / JOURNAL)
    first, second = study(one), study(two)
    trial = first.ask()
    second.sync()
    appended = two._backend.append_logs

    def late(logs):
        first.tell(trial, {"val_acc": 0.5}, 1.0)
        appended(logs)

    two._backend.append_logs = late
    assert second.tell(trial, {"val_acc": 0.75}, 2.0).metrics == {"val_acc": 0.5}
    two._backend.append_logs = appended
    second.run(scored, trials=3)
    assert told(second.history) == told(study(journal_storage(tmp_path / JOURNAL)).history)


# -- parked results -------------------------------------------------------------------------------------


def outcome_of(study, trial, value):
    from dataclasses import replace

    return study.ledger.frozen(replace(trial, state="done", metrics={"val_acc": value}, cost_s=1.5))


def test_parked_results_are_told_first(tmp_path, sqlite, caplog):
    before = study(run_of(tmp_path, sqlite), "epochs=3,width=0.5")
    trial = before.ask()
    Park(tmp_path / "parked").put(before.name, 0, outcome_of(before, trial, 0.25))
    names = [path.name for path in (tmp_path / "parked").iterdir()]
    assert names == ["epochs%3D3%2Cwidth%3D0.5-trial-0.json"]
    after = study(run_of(tmp_path, sqlite), before.name)
    assert told(after.history) == [(0, trial.genotype, "done", {"val_acc": 0.25})]
    assert after.history[0].cost_s == 1.5
    assert "parked result of trial 0 of study 'epochs=3,width=0.5': told" in caplog.text
    assert not list(tmp_path.glob("parked/*"))


def test_a_parked_result_that_comes_second_is_dropped(tmp_path, sqlite, caplog):
    before = study(run_of(tmp_path, sqlite))
    trial = before.ask()
    before.tell(trial, {"val_acc": 0.5}, 1.0)
    Park(tmp_path / "parked").put("s", 0, outcome_of(before, trial, 0.25))
    assert study(run_of(tmp_path, sqlite)).history == before.history
    assert "another result was there before" in caplog.text
    assert not list(tmp_path.glob("parked/*"))


def test_parked_results_of_a_study_that_is_gone_are_kept(tmp_path, sqlite):
    before = study(run_of(tmp_path, sqlite))
    trial = before.ask()
    for name, number in (("gone", 0), ("s", 7)):
        park = Park(tmp_path / "parked")
        park.put(name, number, outcome_of(before, trial, 0.25))
        with pytest.raises(
            ConfigError, match=f"trial {number} of study 'run/{name}', which is not in the storage"
        ):
            run_of(tmp_path, sqlite)
        assert [parked.number for parked in park] == [number]
        park.drop(name, number)


def test_a_result_that_its_own_process_tells_meanwhile_is_no_longer_parked(tmp_path, sqlite):
    before = study(run_of(tmp_path, sqlite))
    park = Park(tmp_path / "parked")
    for number in range(3):
        park.put("s", number, outcome_of(before, before.ask(), 0.25))
    found = iter(park)
    assert next(found).number == 0
    park.drop("s", 1)
    assert [parked.number for parked in found] == [2]


def test_a_parked_result_with_a_flipped_bit_is_not_believed(tmp_path, sqlite):
    before = study(run_of(tmp_path, sqlite))
    park = Park(tmp_path / "parked")
    park.put("s", 0, outcome_of(before, before.ask(), 0.25))
    (path,) = (tmp_path / "parked").rglob("*.json")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0.25", b"0.35"))
    with pytest.raises(ConfigError, match=r"s-trial-0\.json is damaged: its checksum is wrong; move it away"):
        list(park)


def test_a_result_is_told_though_it_cannot_be_parked(tmp_path, sqlite, caplog):
    (tmp_path / "parked").write_text("a file is in the way")
    search = study(run_of(tmp_path, sqlite))
    search.run(scored, trials=2)
    assert len(search.history) == 2 and "cannot park the result of trial 1" in caplog.text


# -- outages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announce", [True, False])
def test_a_server_that_restarts_costs_nothing_but_time(postgres, database, tmp_path, announce, caplog):
    run, timers = f"restart-{announce}", []

    def measure(trial, stream):
        if trial.number in (3, 5):
            postgres.stop(signal.SIGINT if trial.number == 3 else signal.SIGQUIT)
            timers.append(threading.Timer(0.7, postgres.start))
            timers[-1].start()
        return scored(trial, stream)

    search = study(run_of(tmp_path, database, run), announce=announce)
    search.run(measure, trials=8)
    for timer in timers:
        timer.join()
    assert told(search.history) == expected(tmp_path, 8)
    again = study(run_of(tmp_path, database, run), announce=announce)
    assert again.history == search.history
    assert [t.number for t in again.optuna_study.get_trials()] == list(range(8))
    lines = [r.getMessage() for r in caplog.records if r.name == "nas"]
    if announce:  # Optuna itself tries a few times to add a trial
        assert sum("trying again for up to 20 s" in line for line in lines) == 2
        assert sum("works again after" in line for line in lines) == 2
    assert PASSWORD not in caplog.text and QUOTED not in caplog.text


@pytest.mark.parametrize("announce", [True, False])
def test_commits_whose_answer_is_lost_are_not_made_twice(postgres, database, tmp_path, announce):
    proxy = Proxy(postgres.port)
    address = Address(database.secret.replace(f":{postgres.port}/", f":{proxy.port}/"))

    def measure(trial, stream):
        proxy.doubtful = 1  # the next is that of the result
        return scored(trial, stream)

    def proposed(space, history, stream):
        proxy.doubtful = 1  # that of the new trial
        return RandomSearch().ask(space, history, stream)

    search = study(run_of(tmp_path, address, f"doubt-{announce}"), announce=announce)
    search.scheduler = Fixed(type("Doubtful", (), {"ask": staticmethod(proposed)})())
    search.run(measure, trials=5)
    proxy.doubtful = 0
    assert told(search.history) == expected(tmp_path, 5)
    proxy.close()
    assert study(run_of(tmp_path, database, f"doubt-{announce}"), announce=announce).history == search.history


def test_when_the_patience_ends_the_result_is_parked_and_told_by_the_next_run(postgres, database, tmp_path):
    def measure(trial, stream):
        if trial.number == 2:
            postgres.stop()
        return scored(trial, stream)

    search = study(run_of(tmp_path, database, "patience", patience=Patience(0.2)))
    try:
        with pytest.raises(ConfigError, match=r"cannot be used: .*repeat the command to go on") as caught:
            search.run(measure, trials=5)
        assert PASSWORD not in everything_said(caught.value)
        assert "cannot use storage" in refused(database)
    finally:
        postgres.start()
    again = study(run_of(tmp_path, database, "patience"))
    assert [t.state for t in again.history] == ["done"] * 3
    again.run(scored, trials=5)
    assert told(again.history) == expected(tmp_path, 5)


def test_a_stop_request_ends_the_waiting(postgres, database, tmp_path):
    def stop():
        raise Stopped("stopped")

    search = study(run_of(tmp_path, database, "stop", patience=Patience(60, on_wait=stop)))
    trial = search.ask()
    postgres.stop()
    try:
        with pytest.raises(Stopped):
            search.tell(trial, {"val_acc": 0.5}, 1.0)
    finally:
        postgres.start()
    assert told(study(run_of(tmp_path, database, "stop")).history) == [
        (0, trial.genotype, "done", {"val_acc": 0.5})
    ]


@pytest.mark.parametrize("where", ["journal", "sqlite", "database"])
def test_a_study_deleted_under_a_running_job_is_named_and_its_results_kept(tmp_path, request, where):
    address = None if where == "journal" else request.getfixturevalue(where)
    search = study(run_of(tmp_path, address, "deleted"))
    trial = search.ask()
    others = run_of(tmp_path, address, "deleted")
    others.delete_study(others.get_study_id_from_name("s"))
    with pytest.raises(ConfigError, match=r"study '.*s' is no longer in its storage: it was deleted"):
        search.tell(trial, {"val_acc": 0.5}, 1.0)
    assert len(list(Park(tmp_path / "parked"))) == (where != "journal")
    with pytest.raises(ConfigError, match="no longer in its storage"):
        search.ask()
        search.run(scored, trials=3)


def test_a_study_renamed_under_a_running_job_is_named(postgres, database, tmp_path):
    search = study(run_of(tmp_path, database, "renamed"))
    trial = search.ask()
    postgres_of = f"dbname={str(database).rpartition('/')[2]}"
    import psycopg

    with psycopg.connect(f"{postgres.dsn} {postgres_of}".replace("dbname=postgres ", "")) as connection:
        connection.execute("UPDATE studies SET study_name = 'mine' WHERE study_name = 'renamed/s'")
    with pytest.raises(ConfigError, match="study 'renamed/s' is called 'mine' now"):
        search.tell(trial, {"val_acc": 0.5}, 1.0)
    assert [parked.number for parked in Park(tmp_path / "parked")] == [0]


def test_a_locked_or_full_sqlite_file_is_waited_for(tmp_path, sqlite, caplog):
    search = study(run_of(tmp_path, sqlite))
    faults = iter(["database is locked", "database or disk is full"])
    names = {"database is locked": "SQLITE_BUSY", "database or disk is full": "SQLITE_FULL"}

    def fail(connection, cursor, statement, *_):
        import sqlite3

        if statement.startswith("INSERT INTO trial_values") and (fault := next(faults, None)):
            error = sqlite3.OperationalError(fault)
            error.sqlite_errorname = names[fault]
            raise error

    event.listen(search.storage.inner.database.engine, "before_cursor_execute", fail)
    with caplog.at_level(logging.WARNING, logger="nas"):
        search.run(scored, trials=3)
    assert told(search.history) == expected(tmp_path, 3)
    assert "trying again" in caplog.text and "works again" in caplog.text


def test_faults_that_stay_are_not_waited_for(tmp_path, sqlite):
    search = study(run_of(tmp_path, sqlite))
    trial = search.ask()
    with search.storage.inner.database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE trial_user_attributes")
    with pytest.raises(ConfigError, match="no such table"):
        search.tell(trial, {"val_acc": 0.5}, 1.0)
    assert len(list(Park(tmp_path / "parked"))) == 1
