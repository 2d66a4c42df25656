"""Where a history is kept: a journal that is torn, damaged or full, SQLite, PostgreSQL; who may write."""

import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import optuna
import pytest
from postgres import Proxy, postgres  # noqa: F401 - a fixture

from nas.errors import ConfigError, StorageError
from nas.searchers.scheduler import Fixed
from nas.searchers.searcher import RandomSearch
from nas.space.loading import load
from nas.study.address import Address
from nas.study.storage import OWNER, StorageInternalError, Store, open_storage
from nas.study.study import Study

TOY = load("toy")


@pytest.fixture(autouse=True)
def _closed():
    """Nothing is said of new studies, and no connection is left open."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    while OPENED:
        storage = OPENED.pop()
        storage.remove_session()
        storage.engine.dispose()


OPENED = []


def scored(trial, stream):
    return {"val_acc": stream.random()}


def make(where, **settings):
    """A study in the journal at a path or in the database at a URL."""
    storage = open_storage(Address(where) if isinstance(where, str) else where)
    if isinstance(where, str):
        OPENED.append(storage)
    return Study(TOY, Fixed(RandomSearch()), Store(storage, **settings), name="s", seed=1)


def timeless(history):
    return [(t.number, t.genotype, t.state, dict(t.metrics)) for t in history]


def undisturbed(folder, trials):
    """What so many trials give in a journal that nothing happens to."""
    study = make(folder / "undisturbed.log")
    study.run(scored, trials=trials)
    return timeless(study.history)


# -- the journal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_line_is_no_record_and_goes_with_the_next(tmp_path, cut):
    path = tmp_path / "study.log"
    make(path).run(scored, trials=3)
    content = path.read_bytes()
    path.unlink()  # whoever wrote it is gone
    path.write_bytes(content[:-cut])
    again = make(path)
    again.run(scored, trials=5)
    assert timeless(again.history) == timeless(make(path).history) == undisturbed(tmp_path, 5)
    assert all(line.endswith(b"\n") for line in path.read_bytes().splitlines(keepends=True))


@pytest.mark.parametrize("times", [1, 10**6])
def test_a_full_disk_leaves_the_history_as_it_was_and_is_waited_for(tmp_path, monkeypatch, times):
    path, real = tmp_path / "study.log", os.fsync
    study = make(path, patience_s=600.0 if times == 1 else 0.1)
    study.run(scored, trials=2)
    before, refused = path.read_bytes(), []

    def full(descriptor):
        if len(refused) < times:
            refused.append(descriptor)
            assert path.read_bytes().startswith(before)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        if times == 1:
            study.run(scored, trials=4)
        else:
            with pytest.raises(StorageError, match="No space left on device"):
                study.run(scored, trials=4)
            assert path.read_bytes() == before
    again = make(path)
    again.run(scored, trials=4)
    assert timeless(again.history) == undisturbed(tmp_path, 4)


def write(path, told):
    make(path).run(scored, trials=1)
    told.put("written")
    told.close()
    told.join_thread()
    multiprocessing.Event().wait(60)


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    context = multiprocessing.get_context("fork")
    told, path = context.Queue(), tmp_path / "study.log"
    other = context.Process(target=write, args=(path, told))
    other.start()
    assert told.get(timeout=60) == "written"
    study = make(path)
    assert study.ended == 1  # anybody may read
    with pytest.raises(ConfigError, match=r"study.log is written by another process"):
        study.run(scored, trials=2)
    other.kill()
    other.join()
    make(path).run(scored, trials=2)


def test_what_was_written_although_the_storage_said_no_is_not_written_again(tmp_path, monkeypatch):
    """The connection was lost after the commit."""
    study = make(tmp_path / "study.log")
    real, calls = optuna.Study.add_trial, []

    def lost(self, trial):
        calls.append(trial)
        real(self, trial)
        if len(calls) == 1:
            raise StorageInternalError("the server has gone away")

    monkeypatch.setattr(optuna.Study, "add_trial", lost)
    study.run(scored, trials=3)
    assert len(calls) == 3 and len(make(tmp_path / "study.log").history) == 3


# -- databases --------------------------------------------------------------------------------------------


def test_a_history_in_sqlite_is_that_of_a_journal(tmp_path):
    url = f"sqlite:///{tmp_path / 'history.db'}"
    make(url, prefix="run/").run(scored, trials=3)
    study = make(url, prefix="run/")
    study.run(scored, trials=6)
    again = make(url, prefix="run/")
    assert timeless(study.history) == timeless(again.history) == undisturbed(tmp_path, 6)


@pytest.mark.parametrize(
    "url", ["sqlite:////no/such/folder/history.db", "postgresql+psycopg://nas:hunter2@127.0.0.1:1/nas"]
)
def test_databases_that_cannot_be_used_are_named_and_show_no_password(url):
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        open_storage(Address(url))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_study_that_another_process_writes_is_refused_unless_forced(tmp_path, elsewhere):
    url = f"sqlite:///{tmp_path / 'history.db'}"
    study = make(url)
    study.run(scored, trials=1)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        owner = {**study.optuna_study.user_attrs[OWNER], "pid": sleeper.pid}
        study.optuna_study.set_user_attr(OWNER, owner | ({"host": "another"} if elsewhere else {}))
        again = make(url)
        assert again.ended == 1  # anybody may read
        with pytest.raises(ConfigError, match=f"written by process {sleeper.pid} on"):
            again.run(scored, trials=2)
    finally:
        sleeper.kill()
        sleeper.wait()
    make(url, force=elsewhere).run(scored, trials=2)


def test_a_server_that_restarts_costs_nothing_but_time(postgres, tmp_path):  # noqa: F811
    url = postgres.database()
    study = make(url)
    study.run(scored, trials=2)
    postgres.stop()
    back = threading.Timer(1.0, postgres.start)
    back.start()
    began = time.monotonic()
    study.run(scored, trials=5)
    back.join()
    assert time.monotonic() - began > 1
    assert timeless(make(url).history) == undisturbed(tmp_path, 5)


def test_commits_whose_answers_were_lost_are_not_made_again(postgres, tmp_path):  # noqa: F811
    url, proxy = postgres.database(), Proxy(postgres.port)
    study = make(url.replace(str(postgres.port), str(proxy.port)))
    study.run(scored, trials=2)
    proxy.doubtful = 2
    study.run(scored, trials=6)
    proxy.close()
    assert proxy.doubtful == 0
    assert timeless(make(url).history) == undisturbed(tmp_path, 6)
