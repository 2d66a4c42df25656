"""One at a time: whoever asks for a trial does so alone, across processes and machines."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage

from nas.errors import ConfigError, StorageError
from nas.files.atomic import PASSING, storage_errors
from nas.storage.journal_file import SafeJournalBackend
from nas.storage.run import RunStorage
from nas.workers import turns
from nas.workers.turns import CUT_OFF_S, NoTurnError, Turn

_log = logging.getLogger("nas")


def turn_of(storage: BaseStorage, study_id: int) -> Turn:
    """The turns of one study: a lock that ends with its holder.

    A journal's is a locked file beside it, a PostgreSQL database's an advisory lock in a transaction. Both
    are taken from a holder that has been frozen for `CUT_OFF_S`.

    Raises:
        ConfigError: for a storage without such a lock.
    """
    match storage:
        case RunStorage():
            return turn_of(storage.inner, study_id)
        case JournalStorage(_backend=SafeJournalBackend() as backend):
            return FileTurn(backend.path.with_name(f"{backend.path.name}.lock"))
    from nas.workers.turn_in_database import database_turn

    if (turn := database_turn(storage, study_id)) is not None:
        return turn
    raise ConfigError(
        f"several workers need a journal or a PostgreSQL database, got {type(storage).__name__}; see "
        "docs/storage.md"
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
        """Waits `turns.PATIENCE_S` for it; NoTurnError then, or StorageError when the file system refuses."""
        descriptor = self._acquire()
        try:
            yield lambda: self._check(descriptor)
        finally:
            # Closing alone would leave the lock with a child that was forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _acquire(self) -> int:
        deadline, pause_s = time.monotonic() + turns.PATIENCE_S, 0.0005
        while (descriptor := self._tried_again(deadline)) is None:
            if time.monotonic() > deadline:
                self._look_at_holder()
                raise NoTurnError(f"{self._path} has been locked for {turns.PATIENCE_S:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.005)
        return descriptor

    def _tried_again(self, deadline: float) -> int | None:
        """The same; a fault of a file server that may pass is waited for, too."""
        try:
            return self._tried()
        except StorageError as error:
            if error.errno not in PASSING or time.monotonic() > deadline:
                raise
        return None

    def _tried(self) -> int | None:
        """The descriptor of the file, locked; None when another one has it."""
        with storage_errors(self._path), ExitStack() as on_failure:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            on_failure.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._check(descriptor)
            except (BlockingIOError, NoTurnError):
                return None
            os.utime(descriptor)  # tells one holder from the next
            on_failure.pop_all()
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
