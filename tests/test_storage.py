"""Databases: SQLite and a real PostgreSQL; one that is away, and who may write."""

import subprocess
import sys
import threading
import time

import optuna
import pytest
from postgres import Proxy

from nas.errors import ConfigError
from nas.searchers import RandomSearch
from nas.searchers.scheduler import Fixed
from nas.space.loading import load
from nas.study.address import Address
from nas.study.storage import OWNER, open_storage
from nas.study.study import Study

TOY = load("toy")


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def scored(trial, stream):
    return {"val_acc": stream.random()}


def make(url, **settings):
    storage = open_storage(Address(url))
    return Study(TOY, Fixed(RandomSearch()), storage, name="s", prefix="run/", seed=1, **settings)


def timeless(history):
    return [(t.number, t.genotype, t.state, dict(t.metrics)) for t in history]


def test_a_history_in_sqlite_is_that_of_a_journal(tmp_path):
    url = f"sqlite:///{tmp_path / 'history.db'}"
    make(url).run(scored, trials=3)
    study = make(url)
    study.run(scored, trials=6)
    journal = Study(TOY, Fixed(RandomSearch()), open_storage(tmp_path / "study.log"), name="s", seed=1)
    journal.run(scored, trials=6)
    assert timeless(study.history) == timeless(make(url).history) == timeless(journal.history)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////no/such/folder/history.db",
        "postgresql+psycopg://nas:hunter2@127.0.0.1:1/nas",
    ],
)
def test_databases_that_cannot_be_used_are_named_and_show_no_password(url):
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        open_storage(Address(url))
    assert "hunter2" not in str(caught.value)


def test_a_study_that_another_process_writes_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'history.db'}"
    study = make(url)
    study.run(scored, trials=1)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        study.optuna_study.set_user_attr(OWNER, {**study.optuna_study.user_attrs[OWNER], "pid": sleeper.pid})
        again = make(url)
        assert again.ended == 1  # anybody may read
        with pytest.raises(ConfigError, match=f"written by process {sleeper.pid} on"):
            again.run(scored, trials=2)
    finally:
        sleeper.kill()
        sleeper.wait()
    make(url).run(scored, trials=2)


def same_as_a_journal(url, trials, folder):
    journal = Study(TOY, Fixed(RandomSearch()), open_storage(folder / "study.log"), name="s", seed=1)
    journal.run(scored, trials=trials)
    return timeless(make(url).history) == timeless(journal.history)


def test_a_server_that_restarts_costs_nothing_but_time(postgres, tmp_path):
    url = postgres.database()
    study = make(url)
    study.run(scored, trials=2)
    postgres.stop()
    back = threading.Timer(3.0, postgres.start)
    back.start()
    began = time.monotonic()
    study.run(scored, trials=5)
    back.join()
    assert time.monotonic() - began > 2
    assert same_as_a_journal(url, 5, tmp_path)


@pytest.mark.parametrize("doubtful", [1, 3])
def test_a_commit_whose_answer_was_lost_is_not_made_again(postgres, tmp_path, doubtful):
    url, proxy = postgres.database(), Proxy(postgres.port)
    study = make(url.replace(str(postgres.port), str(proxy.port)))
    study.run(scored, trials=2)
    proxy.doubtful = doubtful
    study.run(scored, trials=6)
    proxy.close()
    assert proxy.doubtful == 0
    assert same_as_a_journal(url, 6, tmp_path)
