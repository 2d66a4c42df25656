"""The study's history on disk: an Optuna journal that survives kills, torn lines and full disks."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from nas.errors import ConfigError, NasError
from nas.files import sync_folder, write_all
from nas.strictjson import is_deep
from nas.text import shown

_log = logging.getLogger("nas")

_BLOCK = 1 << 16
MAX_RECORD = 16 << 20
"""Bytes of one record; ours have a few thousand."""


def journal_storage(path: Path) -> JournalStorage:
    """An Optuna storage on the journal at `path`, which is made when it does not exist.

    Raises:
        ConfigError: when it cannot be opened, or its records make no history.
    """
    try:
        return JournalStorage(SafeJournalBackend(path))
    except NasError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the records of journal {path} make no history ({type(error).__name__}: {shown(str(error))}); "
            "restore it from a copy"
        ) from error


class KernelLock(BaseJournalFileLock):
    """An open-file lock on an existing file, which the kernel frees when its holder dies.

    Optuna's own locks are files: the one of a killed writer stays behind and holds up everybody for 30 s, and
    the one of a writer that is merely slow is taken from it. This one is never taken from a living holder.

    patience_s: seconds to wait for other holders, who need milliseconds, before ConfigError.
    """

    def __init__(self, path: str, *, patience_s: float = 60.0) -> None:
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


class SafeJournalBackend(JournalFileBackend):
    """Optuna's journal file, one JSON record a line, kept whole through faults.

    - A torn last line (a power loss, a killed writer) is cut off to `<file>.torn` before anything follows it.
    - A failed append (a full disk) is undone, and its error raised.
    - Damage anywhere else raises ConfigError with its byte offset.
    - Writers exclude each other by a lock on the file itself that dies with its holder.

    path: links are followed once and the absolute path is kept, so that a later chdir does not matter.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.path.realpath(path)
        self._kernel_lock = KernelLock(self._path)
        self._offsets = {0: 0}
        try:
            super().__init__(self._path, self._kernel_lock)
            sync_folder(Path(self._path).parent)
            self._repair_at_open()
        except OSError as error:
            raise ConfigError(f"cannot open the journal {self._path}: {error.strerror}") from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds the records durably: one write, one fsync; all of them or, on failure, none."""
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._writing() as descriptor:
            if _is_torn(descriptor):
                self._repair(descriptor)
            size = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The records from number `log_number_from` on; a last line still being written is left out."""
        number = log_number_from if log_number_from in self._offsets else 0
        offset = self._offsets[number]
        with Path(self._path).open("rb") as file:
            self._check_size(os.fstat(file.fileno()).st_size, offset)
            file.seek(offset)
            for line in iter(lambda: file.readline(MAX_RECORD), b""):
                if len(line) == MAX_RECORD:
                    raise ConfigError(
                        self._damage(number, offset, f"the line is longer than {MAX_RECORD} bytes")
                    )
                if not line.endswith(b"\n"):
                    return
                record = self._parsed(line, number, offset)
                number, offset = number + 1, offset + len(line)
                self._offsets[number] = offset
                if number > log_number_from:
                    yield record

    @contextmanager
    def _writing(self) -> Iterator[int]:
        self._kernel_lock.acquire()
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        finally:
            self._kernel_lock.release()

    def _repair_at_open(self) -> None:
        with Path(self._path).open("rb") as file:
            if not _is_torn(file.fileno()):
                return
        try:
            with self._writing() as descriptor:
                # Looked at again under the lock: what seemed torn may have been a write under way.
                if _is_torn(descriptor):
                    self._repair(descriptor)
        except OSError as error:  # a full or read-only disk must not stop anybody from reading
            _log.warning("cannot repair the torn end of journal %s yet: %s", self._path, error.strerror)

    def _repair(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if os.pread(descriptor, 1, 0) not in (b"{", b"\0"):
            raise ConfigError(f"{self._path} is not a journal: it does not begin with a JSON record")
        end = _end_of_records(descriptor, size)
        _append(self._path + ".torn", os.pread(descriptor, size - end, end) + b"\n")
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
        _log.warning("journal %s had a torn last line: %d bytes moved to .torn", self._path, size - end)

    def _parsed(self, line: bytes, number: int, offset: int) -> dict[str, Any]:
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise ConfigError(self._damage(number, offset, str(error))) from error
        if not isinstance(record, dict) or "op_code" not in record or is_deep(record):
            raise ConfigError(self._damage(number, offset, "the line is not a journal record"))
        return record

    def _damage(self, number: int, offset: int, why: str) -> str:
        return (
            f"journal {self._path} is damaged at byte {offset} (record {number}): {why}; restore it from a "
            f"copy, or keep what is before the damage with: head -c {offset} FILE > NEW_FILE"
        )

    def _check_size(self, size: int, offset: int) -> None:
        if size < offset:
            raise ConfigError(
                f"journal {self._path} has {size} bytes, but {offset} were already read: it was cut or "
                "replaced while in use; start this process again"
            )


def _is_torn(descriptor: int) -> bool:
    """Whether the file does not end with a full line; looks at its last byte only."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _end_of_records(descriptor: int, size: int) -> int:
    """The offset just behind the last newline, or 0 without one."""
    while size > 0:
        start = max(0, size - _BLOCK)
        newline = os.pread(descriptor, size - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0


def _append(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
