"""A lock on a file that the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import ExitStack

from optuna.storages.journal._file import BaseJournalFileLock

from nas.errors import ConfigError


class KernelLock(BaseJournalFileLock):
    """An open-file lock on an existing file, which the kernel frees when its holder dies.

    Optuna's own locks are files: the one of a killed writer stays behind and holds up everybody for 30 s, and
    the one of a writer that is merely slow is taken from it. This one is never taken from a living holder.

    patience_s: seconds to wait for other holders, who need milliseconds, before ConfigError. A worker that
      was stopped while it had the lock is killed by its coordinator sooner than that.
    """

    def __init__(self, path: str, *, patience_s: float = 300.0) -> None:
        self._path = path
        self._patience_s = patience_s
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Waits for the lock and takes it."""
        # Opened anew each time: threads and forked children then exclude each other like strangers.
        descriptor = os.open(self._path, os.O_RDWR)
        with ExitStack() as on_failure:
            on_failure.callback(os.close, descriptor)
            self._wait(descriptor)
            on_failure.pop_all()
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Gives the lock back."""
        if self._descriptor is None:
            raise RuntimeError(f"the lock on {self._path} is not held")
        descriptor, self._descriptor = self._descriptor, None
        # Closing alone would leave the lock with a child that was forked meanwhile.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def _wait(self, descriptor: int) -> None:
        deadline = time.monotonic() + self._patience_s
        pause_s = 0.0005
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{self._path} has been locked by another process for {self._patience_s:g} s; "
                    "look for a worker that is stopped or a file server that does not answer"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.005)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
