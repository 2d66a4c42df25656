"""The process that holds up all others because it was stopped while it had a lock, let go on for a moment."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

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
