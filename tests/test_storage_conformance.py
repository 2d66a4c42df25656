"""Every storage of ours is one by Optuna's own tests."""

import itertools

import pytest
from optuna.testing.pytest_storages import StorageTestCase
from postgres import postgres

from nas.storage.journal import journal_storage
from nas.storage.parked import Park
from nas.storage.patience import Patience
from nas.storage.run import RunStorage, open_storage

__all__ = ["postgres"]
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class TestJournal(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path):
        return journal_storage(tmp_path / "study.log")


class TestRunInJournal(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path):
        return RunStorage(journal_storage(tmp_path / "study.log"))


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('db') / 'a.db'}", patience=Patience(0))
    yield storage
    storage.database.close()


@pytest.fixture(scope="module")
def postgresql(postgres):
    storage = open_storage(postgres.database(), patience=Patience(0))
    yield storage
    storage.database.close()


RUNS = itertools.count()
"""One database serves all tests: a run sees nothing but its own studies."""


class TestSQLite(StorageTestCase):
    @pytest.fixture
    def storage(self, sqlite, tmp_path):
        return RunStorage(sqlite, run=f"run-{next(RUNS)}", park=Park(tmp_path / "parked"))


class TestPostgreSQL(StorageTestCase):
    @pytest.fixture
    def storage(self, postgresql, tmp_path):
        return RunStorage(postgresql, run=f"run-{next(RUNS)}", park=Park(tmp_path / "parked"))
