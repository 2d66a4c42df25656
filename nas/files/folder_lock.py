"""The lock of a run folder: one process at a time owns it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from optuna.storages.journal._file import BaseJournalFileLock

from nas.errors import ConfigError
from nas.files.atomic import read_json, write_all
from nas.files.paths import check_contents

_log = logging.getLogger("nas")
_PROCESSES = Path("/proc")


def holders(descriptor: int) -> list[int]:
    """Ids of the processes of this machine that hold an open-file lock on the file that is open here.

    They are found by the kernel's own list. It is empty where there is none, and for processes of other
    machines, containers and users.
    """
    path = _link(Path("/proc/self/fd", str(descriptor)))
    return [pid for pid in _lockers() if path and _has_locked(pid, path)]


class Woken:
    """A process that was stopped (SIGSTOP, SIGTSTP) with the lock, and has been told to go on.

    It needs milliseconds to finish what it was writing. Whoever gets the lock then stops it again, so that
    nothing is changed for whoever had stopped it: a batch system that gave its GPU to another job, say.
    """

    def __init__(self, pid: int, handle: int) -> None:
        self.pid, self._handle = pid, handle

    def stop_again(self) -> None:
        """Stops it; only for the one who has the lock, so that it cannot have it."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._handle, signal.SIGSTOP)

    def close(self) -> None:
        """Forgets it."""
        os.close(self._handle)


def wake(descriptor: int) -> Woken | None:
    """Lets the holder of the lock on a file that is open here go on, if it is stopped; None if it is not."""
    for pid in holders(descriptor):
        if (handle := _handle(pid)) is None:
            continue
        # Only now is it sure that the number does not mean another process meanwhile.
        if is_stopped(pid) and pid in holders(descriptor):
            with suppress(OSError):
                signal.pidfd_send_signal(handle, signal.SIGCONT)
                _log.warning("process %d was stopped while it was writing; it goes on for a moment", pid)
                return Woken(pid, handle)
        os.close(handle)
    return None


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    with suppress(OSError):
        # The name, in brackets, may hold anything.
        return (_PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def _handle(pid: int) -> int | None:
    """A descriptor that means this process and never a later one of its number."""
    with suppress(OSError, AttributeError):  # only Linux has them
        return os.pidfd_open(pid)
    return None


def _lockers() -> Iterator[int]:
    """Who holds any open-file lock: lines like `1: FLOCK ADVISORY WRITE 4711 08:01:131090 0 EOF`."""
    with suppress(OSError):
        for line in (_PROCESSES / "locks").read_text().splitlines():
            match line.split():
                case [_, "FLOCK", _, _, pid, *_] if pid.isdigit() and pid != str(os.getpid()):
                    yield int(pid)


def _has_locked(pid: int, path: str) -> bool:
    folder = _PROCESSES / str(pid)
    with suppress(OSError):
        for link in (folder / "fd").iterdir():
            with suppress(OSError):
                if _link(link) == path and "FLOCK" in (folder / "fdinfo" / link.name).read_text():
                    return True
    return False


def _link(path: Path) -> str:
    """Where a link leads, in the kernel's words."""
    with suppress(OSError):
        return str(path.readlink())
    return ""


LOCK = "run.lock"


class FolderLock:
    """A run folder's lock: one process owns the folder, a second one is told who does.

    It is an open-file lock on `run.lock`, so the kernel frees it when the owner dies, however it dies. The
    file says who the owner is and stays behind; only the lock counts. Children do not inherit it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock, or raises ConfigError naming the owner's pid and host, or a link out of here."""
        check_contents(self._path.parent)
        try:
            # What is locked is also cut and written to, so it must not be a link to something else.
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise ConfigError(f"cannot open the lock {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_owner(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(self._refusal(error)) from error
        self._descriptor = descriptor
        _HELD.add(self)

    def release(self) -> None:
        """Gives the lock back; without effect when it is not held."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._close()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _HELD.discard(self)

    def _refusal(self, error: OSError) -> str:
        if not isinstance(error, BlockingIOError):
            return f"cannot lock {self._path}: {error.strerror}"
        return (
            f"the run folder {str(self._path.parent)!r} is in use by {self._owner()}; "
            f"wait until it ends, stop it, or choose another folder"
        )

    def _owner(self) -> str:
        try:
            owner = read_json(self._path, max_bytes=4096)
        except ConfigError:  # the owner has the lock but has not written its name yet
            return "another process"
        if not isinstance(owner, dict):
            return "another process"
        return f"pid {owner.get('pid')} on host {owner.get('host')} since {owner.get('started')}"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Runs a block while no other process works in a folder; waits until one that does has gone.

    A worker whose coordinator was killed lives on for a moment, while the next one has begun its trial again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_HELD: set[FolderLock] = set()


def _close_all() -> None:
    for lock in [*_HELD]:
        lock._close()


# A forked child shares the open files: it would keep locks alive after its parent's death.
os.register_at_fork(after_in_child=_close_all)


def _write_owner(descriptor: int) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    os.ftruncate(descriptor, 0)
    write_all(descriptor, (json.dumps(owner) + "\n").encode())


_WOKEN_S = 2.0
"""A holder that has not given the lock back so long after it was woken needs it for more than a write."""


class KernelLock(BaseJournalFileLock):
    """An open-file lock on an existing file, which the kernel frees when its holder dies.

    Optuna's own locks are files: the one of a killed writer stays behind and holds up everybody for 30 s, and
    the one of a writer that is merely slow is taken from it. This one is never taken from a living holder:
    what that has begun to write could then be torn by others. A holder on this machine that was stopped can
    be let go on until it gives the lock back, see `nas.files.folder_lock`.

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
