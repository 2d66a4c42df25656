"""A lock on a file that the kernel frees when its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import ExitStack
from pathlib import Path

from optuna.storages.journal._file import BaseJournalFileLock

from nas.errors import ConfigError
from nas.files.stopped_holder import Woken, holders, wake

_WOKEN_S = 2.0
"""A holder that has not given the lock back so long after it was woken needs it for more than a write."""


class KernelLock(BaseJournalFileLock):
    """An open-file lock on an existing file, which the kernel frees when its holder dies.

    Optuna's own locks are files: the one of a killed writer stays behind and holds up everybody for 30 s, and
    the one of a writer that is merely slow is taken from it. This one is never taken from a living holder:
    what that has begun to write could then be torn by others. A holder on this machine that was stopped can
    be let go on until it gives the lock back, see `nas.files.stopped_holder`.

    patience_s: seconds to wait for other holders, who need milliseconds, before ConfigError.
    wake_s: seconds after which a holder that is stopped is woken; None leaves it, where a holder may need the
      lock for longer than a moment.
    """

    def __init__(self, path: str, *, patience_s: float = 300.0, wake_s: float | None = None) -> None:
        self._path = path
        self._patience_s, self._wake_s = patience_s, wake_s
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Waits for the lock and takes it."""
        # Opened anew each time: threads and forked children then exclude each other like strangers.
        while (descriptor := self._locked()) is None:
            pass
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

    def _locked(self) -> int | None:
        """A descriptor of the file, locked; None when another file has taken its place meanwhile."""
        descriptor = os.open(self._path, os.O_RDWR)
        with ExitStack() as on_failure:
            on_failure.callback(os.close, descriptor)
            self._wait(descriptor)
            if os.path.samestat(os.fstat(descriptor), Path(self._path).stat()):
                on_failure.pop_all()
                return descriptor
        return None

    def _wait(self, descriptor: int) -> None:
        begun, pause_s, looked, woken = time.monotonic(), 0.0005, time.monotonic(), None
        with ExitStack() as at_end:
            while not _try_lock(descriptor):
                now = time.monotonic()
                if now > begun + self._patience_s:
                    raise self._given_up(descriptor)
                if self._wake_s is not None and now > looked + self._wake_s:
                    looked = now
                    if (found := wake(descriptor)) is not None:
                        woken = (found, now)
                        at_end.callback(found.close)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.005)
            _put_back(woken)

    def _given_up(self, descriptor: int) -> ConfigError:
        who = " and ".join(f"process {pid}" for pid in holders(descriptor)) or "another process"
        return ConfigError(
            f"{self._path} has been locked by {who} for {self._patience_s:g} s; "
            "look for a worker that is stopped or a file server that does not answer"
        )


def _put_back(woken: tuple[Woken, float] | None) -> None:
    """Stops a process again that was woken a moment ago; one that was woken earlier may be at work since."""
    if woken is not None and time.monotonic() - woken[1] < _WOKEN_S:
        woken[0].stop_again()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
