"""Turns in a PostgreSQL database, which many machines share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from optuna.storages import BaseStorage
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from nas.seeding import derive
from nas.storage.patient import PatientStorage
from nas.workers import turns
from nas.workers.turns import CUT_OFF_S, NoTurnError

KEPT_S = 30.0
"""A worker whose turns come as often keeps a connection for them, which takes longer to open than to use."""


def database_turn(storage: BaseStorage, study_id: int) -> PostgresTurn | None:
    """The turns of a study in a database; None where it has none."""
    if isinstance(storage, PatientStorage) and storage.database.engine.dialect.name == "postgresql":
        return PostgresTurn(storage, derive(0, "turn", study_id))
    return None


class PostgresTurn:
    """Turns by an advisory lock of a transaction that does nothing else."""

    def __init__(
        self,
        storage: PatientStorage,
        key: int,
        *,
        cut_off_s: float = CUT_OFF_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._key, self._cut_off_s = storage.database.engine, key, cut_off_s
        self._clock, self._last = clock, -math.inf

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], None]]:
        """Waits `turns.PATIENCE_S` for it; NoTurnError then, or when the database is away."""
        try:
            connection = self._engine.connect()
        except SQLAlchemyError as error:
            raise NoTurnError("the database gives no turn now") from error
        with connection:
            self._lock(connection)
            try:
                yield lambda: _check(connection)
            finally:
                _unlock(connection)
                if self._is_seldom():
                    connection.invalidate()
                self._last = self._clock()

    def _is_seldom(self) -> bool:
        """Whether turns come so seldom that a connection kept for them would only cost the server memory."""
        return self._clock() - self._last > KEPT_S

    def _lock(self, connection: Connection) -> None:
        limits = {"idle_in_transaction_session_timeout": self._cut_off_s, "lock_timeout": turns.PATIENCE_S}
        try:
            for name, limit_s in limits.items():
                connection.execute(text(f"SET LOCAL {name} = {round(1000 * limit_s)}"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": self._key})
        except SQLAlchemyError as error:
            _unlock(connection)
            raise NoTurnError("the database gave no turn in time") from error


def _check(connection: Connection) -> None:
    try:
        connection.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise NoTurnError("the turn was lost") from error


def _unlock(connection: Connection) -> None:
    try:
        connection.rollback()
    except SQLAlchemyError:  # the server has ended the session, and the lock with it
        connection.invalidate()
