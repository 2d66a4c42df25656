"""A history in a file of JSON lines, which one process writes and any may read."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from nas.errors import ConfigError

JOURNAL = "study.log"
MOST = 2**24
"""Bytes of a record."""


class Journal(BaseJournalBackend):
    """What Optuna's `JournalStorage` writes to; all of what is appended gets there, or nothing.

    A line that was torn when its writer was killed is no record: readers pass over it, and the next writer
    removes it. A disk that is full leaves the file as it was, and the caller may try again.

    Raises:
        ConfigError: when a line is damaged, or another process writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = self._number = 0
        if not path.exists():
            path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from a number on, counted from 0."""
        if log_number_from < self._number:
            self._offset = self._number = 0
        with self.path.open("rb") as file:
            file.seek(self._offset)
            while line := file.readline(MOST + 1):
                if len(line) > MOST:
                    raise ConfigError(f"{self.path}, line {self._number + 1} is longer than {MOST} bytes")
                if not line.endswith(b"\n"):
                    return
                try:
                    record: dict[str, Any] = json.loads(line)
                except ValueError as error:
                    raise ConfigError(
                        f"{self.path}, line {self._number + 1} is damaged ({error}); restore the file, or "
                        "remove that line to go on without what it says"
                    ) from error
                self._offset += len(line)
                self._number += 1
                if self._number > log_number_from:
                    yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends records, on the disk when this returns."""
        lines = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in logs).encode()
        self._begin()
        with self.path.open("r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise

    def _begin(self) -> None:
        """Before the first record: makes this process the only writer, and removes a torn last line."""
        file = self.path.stat()
        key = file.st_dev, file.st_ino
        if key in _written:
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError(
                f"{self.path} is written by another process; wait for it, or give this one another folder"
            ) from error
        _written[key] = descriptor
        content = self.path.read_bytes()
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)


_written: dict[tuple[int, int], int] = {}
"""The files that this process writes, with the descriptors that hold their locks until it ends."""
