"""A database that may be away for a while: its calls are repeated until it is back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import _CachedStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from nas.errors import ConfigError
from nas.storage.address import Address
from nas.storage.database import Database, explain, open_database, root
from nas.storage.finishing import Finisher
from nas.storage.forwarding import Forwarding
from nas.storage.patience import Patience

T = TypeVar("T")
_STATES = ("08", "25P03", "40", "53", "55P03", "57", "58")
"""How the SQLSTATE of PostgreSQL's passing faults begins: connections, locks, shortages, shutdowns, disks."""
_SQLITE = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
)


class PatientStorage(Forwarding, Finisher):
    """Optuna's cache in front of a database, each call of which outlasts the absence of the server.

    A call that fails may have taken place; each may be made again, and means the same as once. Only a trial
    made without a template may then be there twice.

    Raises:
        ConfigError: when the patience is at an end, or at once for a fault that stays.
    """

    def __init__(self, address: Address, patience: Patience) -> None:
        self.address, self.patience = address, patience
        self.database: Database = open_database(address)
        super().__init__(_CachedStorage(self.database))

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """See `BaseStorage`."""

        def create(attempt: int) -> int:
            try:
                return self.inner.create_new_study(directions, study_name)
            except DuplicatedStudyError:
                if attempt == 0 or study_name is None:
                    raise
                return self.inner.get_study_id_from_name(study_name)

        return self._call(_counted(create))

    def delete_study(self, study_id: int) -> None:
        """See `BaseStorage`."""

        def delete(attempt: int) -> None:
            try:
                self.inner.delete_study(study_id)
            except KeyError:
                if attempt == 0:
                    raise

        self._call(_counted(delete))

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """See `BaseStorage`."""

        def tell(attempt: int) -> bool:
            try:
                return self.inner.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                told = self.database.get_trial(trial_id)
                if attempt == 0 or (told.state, told.values) != (
                    state,
                    None if values is None else [*values],
                ):
                    raise
                return True

        return self._call(_counted(tell))

    def finish_trial(self, study_id: int, number: int, outcome: FrozenTrial) -> bool:
        """Ends a running trial; false when it had ended already, in another way."""

        def end() -> bool:
            trial_id = self.inner.get_trial_id_from_study_id_trial_number(study_id, number)
            return self.database.end_trial(study_id, trial_id, outcome)

        return self._call(end)

    def _call(self, work: Callable[[], T]) -> T:
        failures = (SQLAlchemyError, StorageInternalError)
        try:
            return self.patience.outlast(work, failures, self._passing, what=f"storage {self.address}")
        except failures as error:
            problem = explain(error, self.address)
        raise ConfigError(f"storage {self.address} cannot be used: {problem}; repeat the command to go on")

    def _passing(self, error: Exception) -> str:
        """What keeps the database from answering now but perhaps not for long, or nothing."""
        cause = root(error)
        # Pending: Optuna asked once more after a failure, without giving the broken connection up.
        passes = isinstance(cause, PoolTimeoutError | PendingRollbackError) or (
            isinstance(cause, DBAPIError) and _passes(cause)
        )
        return explain(error, self.address) if passes else ""


def _passes(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    if (name := getattr(error.orig, "sqlite_errorname", None)) is not None:
        return str(name).startswith(_SQLITE)
    state = getattr(error.orig, "sqlstate", None)
    # The server could not be spoken to at all where an operational error has no state.
    return state.startswith(_STATES) if state is not None else type(error).__name__ == "OperationalError"


def _counted(work: Callable[[int], T]) -> Callable[[], T]:
    """`work` as a function that passes it the number of earlier calls."""
    calls = iter(range(10**9))
    return lambda: work(next(calls))
