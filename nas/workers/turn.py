"""One at a time: whoever asks for a trial does so alone, across processes and machines."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from nas.errors import ConfigError
from nas.journal import SafeJournalBackend
from nas.seeding import derive

_log = logging.getLogger("nas")

PATIENCE_S = 5.0
"""Seconds to wait for one's turn before doing something else and trying again."""
CUT_OFF_S = 300.0
"""Seconds after which the turn is taken from a process that does nothing with it."""


class NoTurnError(Exception):
    """Others have had the turn all the time, or it was taken away; trying again later is right."""


Turn = Callable[[], AbstractContextManager[Callable[[], None]]]
"""Enters when it is this process's turn; what it gives raises NoTurnError once the turn is lost."""


def turn_of(storage: BaseStorage, name: str) -> Turn:
    """The turns of one study: a lock that ends with its holder.

    A journal's is a locked file beside it, a PostgreSQL database's an advisory lock in a transaction. Both
    are taken from a holder that has been frozen for `CUT_OFF_S`.

    Raises:
        ConfigError: for a storage without such a lock.
    """
    if isinstance(storage, JournalStorage) and isinstance(storage._backend, SafeJournalBackend):
        return FileTurn(storage._backend.path.with_name(f"{storage._backend.path.name}.lock"))
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    if isinstance(backend, RDBStorage) and backend.engine.dialect.name == "postgresql":
        return postgres_turn(backend.engine, derive(0, "turn", name))
    raise ConfigError(
        f"study {name!r}: several workers need a journal or a PostgreSQL database, got "
        f"{type(backend).__name__}"
    )


class FileTurn:
    """Turns by a lock on an open file, which the kernel ends when its holder dies.

    One that is frozen keeps it. So whoever has seen the same holder for `cut_off_s` puts a new file in the
    place of the locked one, and the other finds that out before it writes, when it goes on.
    """

    def __init__(
        self, path: Path, *, cut_off_s: float = CUT_OFF_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path, self._cut_off_s, self._clock = path, cut_off_s, clock
        self._holder: tuple[int, int] | None = None
        self._since = clock()

    @contextmanager
    def __call__(self) -> Iterator[Callable[[], None]]:
        """Waits `PATIENCE_S` for it; NoTurnError then."""
        descriptor = self._acquire()
        try:
            yield lambda: self._check(descriptor)
        finally:
            # Closing alone would leave the lock with a child that was forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _acquire(self) -> int:
        deadline, pause_s = time.monotonic() + PATIENCE_S, 0.0005
        while (descriptor := self._tried()) is None:
            if time.monotonic() > deadline:
                self._look_at_holder()
                raise NoTurnError(f"{self._path} has been locked for {PATIENCE_S:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.005)
        return descriptor

    def _tried(self) -> int | None:
        """The descriptor of the file, locked; None when another one has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check(descriptor)
        except (BlockingIOError, NoTurnError):
            os.close(descriptor)
            return None
        os.utime(descriptor)  # tells one holder from the next
        return descriptor

    def _look_at_holder(self) -> None:
        """Ends the turn of a holder that has been the same for too long."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:  # somebody else has just done so
            return
        holder = stat.st_ino, stat.st_mtime_ns
        if holder != self._holder:
            self._holder, self._since = holder, self._clock()
        elif self._clock() - self._since > self._cut_off_s:
            _log.warning("%s was locked by the same process for %g s; going on", self._path, self._cut_off_s)
            self._path.unlink(missing_ok=True)

    def _check(self, descriptor: int) -> None:
        try:
            current = self._path.stat().st_ino
        except FileNotFoundError:
            current = None
        if current != os.fstat(descriptor).st_ino:
            raise NoTurnError(f"{self._path} is another file by now: the turn was lost")


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
