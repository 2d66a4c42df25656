"""The lock of a run folder: one process at a time owns it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from nas.errors import ConfigError
from nas.files.atomic import read_json, write_all
from nas.files.paths import check_contents

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
