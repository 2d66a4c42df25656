"""Temporary folders of which nothing is left for long, however their process ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's temporary directory, for the time of the block.

    One that a killed process left is removed when a process of the same user and machine opens its next one.
    Each is locked by its process (an open-file lock), which the kernel undoes however that ends; where a file
    system has no such locks, those of killed processes stay. Some tell no other machine of a lock, so names
    say which machine a folder is of.

    Raises:
        OSError: when none can be made.
    """
    _sweep()
    with ExitStack() as at_end:
        folder = _made(at_end)
        at_end.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _made(at_end: ExitStack) -> Path:
    """A new folder, locked until the end; another process may remove one before its lock, see `_sweep`."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix()))
        with suppress(FileNotFoundError), ExitStack() as on_failure:
            descriptor = os.open(folder, os.O_RDONLY)
            on_failure.callback(os.close, descriptor)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                at_end.push(on_failure.pop_all())
                return folder


def _sweep() -> None:
    """Removes the folders of this user's processes on this machine that have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        # Where it is another user's, in use, or gone meanwhile, it is left alone.
        with suppress(OSError), ExitStack() as at_end:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            at_end.callback(os.close, descriptor)
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    return f"nas-temporary-{socket.gethostname()}@"
