"""One at a time: whoever asks for a trial does so alone, across processes and machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from nas.errors import ConfigError
from nas.journal import KernelLock, SafeJournalBackend
from nas.seeding import derive

PATIENCE_S = 5.0
"""Seconds to wait for one's turn before doing something else and trying again."""
CUT_OFF_S = 300.0
"""Seconds after which a database takes the turn from a process that does nothing with it."""


class NoTurnError(Exception):
    """Others have had the turn all the time, or it was taken away; trying again later is right."""


Turn = Callable[[], AbstractContextManager[Callable[[], None]]]
"""Enters when it is this process's turn; what it gives raises NoTurnError once the turn is lost."""


def turn_of(storage: BaseStorage, name: str) -> Turn:
    """The turns of one study: a lock that ends with its holder.

    A journal's is a locked file beside it, a PostgreSQL database's an advisory lock in a transaction, which
    the server ends when its holder has been frozen for `CUT_OFF_S`.

    Raises:
        ConfigError: for a storage without such a lock.
    """
    if isinstance(storage, JournalStorage) and isinstance(storage._backend, SafeJournalBackend):
        return file_turn(storage._backend.path.with_name(f"{storage._backend.path.name}.lock"))
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    if isinstance(backend, RDBStorage) and backend.engine.dialect.name == "postgresql":
        return postgres_turn(backend.engine, derive(0, "turn", name))
    raise ConfigError(
        f"study {name!r}: several workers need a journal or a PostgreSQL database, got "
        f"{type(backend).__name__}"
    )


def file_turn(path: Path) -> Turn:
    """Turns by an open-file lock."""

    @contextmanager
    def turn() -> Iterator[Callable[[], None]]:
        path.touch()
        lock = KernelLock(str(path), patience_s=PATIENCE_S)
        try:
            lock.acquire()
        except ConfigError as error:
            raise NoTurnError(str(error)) from error
        try:
            yield lambda: None
        finally:
            lock.release()

    return turn


def postgres_turn(engine: Engine, key: int, *, cut_off_s: float = CUT_OFF_S) -> Turn:
    """Turns by an advisory lock of a transaction that does nothing else."""

    @contextmanager
    def turn() -> Iterator[Callable[[], None]]:
        with engine.connect() as connection:
            _lock(connection, key, cut_off_s)
            try:
                yield lambda: _check(connection)
            finally:
                _unlock(connection)

    return turn


def _lock(connection: Connection, key: int, cut_off_s: float) -> None:
    limits = {"idle_in_transaction_session_timeout": cut_off_s, "lock_timeout": PATIENCE_S}
    try:
        for name, limit_s in limits.items():
            connection.execute(text(f"SET LOCAL {name} = {round(1000 * limit_s)}"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
    except DBAPIError as error:
        raise NoTurnError(f"the database gave no turn: {error.orig}") from error


def _check(connection: Connection) -> None:
    try:
        connection.execute(text("SELECT 1"))
    except DBAPIError as error:
        raise NoTurnError(f"the turn was lost: {error.orig}") from error


def _unlock(connection: Connection) -> None:
    try:
        connection.rollback()
    except DBAPIError:  # the server has ended the session, and the lock with it
        connection.invalidate()
