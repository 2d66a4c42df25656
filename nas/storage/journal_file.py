"""The journal's file: records of JSON that outlive kills, torn lines, flipped bits and full disks."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from optuna.storages.journal import JournalFileBackend

from nas.errors import ConfigError
from nas.files.atomic import sync_folder, write_all
from nas.files.kernel_lock import KernelLock
from nas.files.strictjson import is_deep
from nas.storage.patience import PATIENT, Patience
from nas.storage.sealing import Place, place_of, seal, study_begun_in, unsealed

_log = logging.getLogger("nas")
T = TypeVar("T")
_BLOCK = 1 << 16
_TAIL = 64
MAX_RECORD = 16 << 20
"""Bytes of one record; ours have a few thousand."""
WAKE_S = 1.0
"""Seconds after which a writer that was stopped in the middle is let finish; it takes milliseconds."""
_PASSING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EIO, errno.ESTALE, errno.ENOLCK, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN),
}
"""A disk that is full or read-only, and a disk or file server with a fault; all have been seen to go away."""


class Mark(NamedTuple):
    """A place between two records.

    trials: how many were begun before it, by study. tail: the bytes before it, by which the file is known
      again: they hold the last seal.
    """

    number: int = 0
    trials: Mapping[int, int] = {}
    offset: int = 0
    tail: bytes = b""

    def place(self, text: bytes) -> Place:
        """What the seal of a record here must say."""
        study = study_begun_in(text)
        own = 0 if study is None else self.trials.get(study, 0)
        return Place(self.number, sum(self.trials.values()), own)

    def beyond(self, line: bytes) -> Mark:
        """The place behind a line that stands here."""
        study, trials = study_begun_in(line), self.trials
        if study is not None:
            trials = {**trials, study: trials.get(study, 0) + 1}
        return Mark(self.number + 1, trials, self.offset + len(line), line[-_TAIL:])


class SafeJournalBackend(JournalFileBackend):
    """Optuna's journal file, one JSON record a line, kept whole through faults.

    - A torn last line (a power loss, a killed writer) is cut off to `<file>.torn` before anything follows it.
    - A failed append (a full disk) is undone, and tried again while it may still succeed; so is reading.
    - Every record bears a seal that Optuna ignores, see `nas.storage.sealing`: a flipped bit or a lost line
      raises ConfigError with its byte offset. Records without one, by older versions, are read as well.
    - Writers exclude each other by a lock on the file itself that dies with its holder.

    path: links are followed once and the absolute path is kept, so that a later chdir does not matter.
    patience: with a full disk or a file server that is away.
    """

    def __init__(self, path: Path, *, patience: Patience = PATIENT) -> None:
        self._path = os.path.realpath(path)
        self._kernel_lock = KernelLock(self._path, wake_s=WAKE_S)
        self._patience = patience
        # Optuna reads on from where it last ended; an append counts from the furthest place known.
        self._read = self._known = Mark()
        try:
            super().__init__(self._path, self._kernel_lock)
            sync_folder(Path(self._path).parent)
            self._repair_at_open()
        except OSError as error:
            raise ConfigError(f"cannot open the journal {self._path}: {error.strerror}") from error

    @property
    def path(self) -> Path:
        """Where the journal is."""
        return Path(self._path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds the records durably: one write, one fsync; all of them or, on failure, none."""
        attempt = _Attempt()
        self._outlast(lambda: self._append(logs, attempt))

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The records from number `log_number_from` on; a last line still being written is left out."""
        mark = self._read if log_number_from == self._read.number else Mark()
        start = mark
        for line in self._outlast(lambda: self._rest(start)):
            if len(line) > MAX_RECORD:
                raise ConfigError(self._damage(mark, f"the line is longer than {MAX_RECORD} bytes"))
            if not line.endswith(b"\n"):
                return
            number, record = mark.number, self._parsed(line, mark)
            self._read = mark = mark.beyond(line)
            if mark.offset > self._known.offset:
                self._known = mark
            if number >= log_number_from:
                yield record

    def _append(self, logs: list[dict[str, Any]], attempt: _Attempt) -> None:
        with self._writing() as descriptor:
            if _is_torn(descriptor):
                self._repair(descriptor)
            if attempt.stands(descriptor):
                os.fsync(descriptor)
                return
            size = os.fstat(descriptor).st_size
            known = self._counted(descriptor, size)
            lines = []
            for log in logs:
                body = json.dumps(log, separators=(",", ":"))
                lines.append(seal(body, known.place(body.encode())))
                known = known.beyond(lines[-1])
            attempt.offset, attempt.data = size, b"".join(lines)
            try:
                write_all(descriptor, attempt.data)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
            self._known = known

    def _counted(self, descriptor: int, size: int) -> Mark:
        """The place at the end of the file, which others may have written to."""
        known = self._known
        self._check_same(descriptor, known)
        for line in os.pread(descriptor, size - known.offset, known.offset).split(b"\n")[:-1]:
            known = known.beyond(line + b"\n")
        return known

    def _rest(self, mark: Mark) -> list[bytes]:
        """The lines from a place on, up to one that is too long to be read."""
        lines = list[bytes]()
        with Path(self._path).open("rb") as file:
            self._check_same(file.fileno(), mark)
            file.seek(mark.offset)
            while line := file.readline(MAX_RECORD + 1):
                lines.append(line)
                if len(line) > MAX_RECORD:
                    break
        return lines

    def _outlast(self, work: Callable[[], T]) -> T:
        try:
            return self._patience.outlast(work, (OSError,), _passing, what=f"journal {self._path}")
        except OSError as error:
            raise ConfigError(
                f"cannot use the journal {self._path} on {_mount(Path(self._path))}: {error.strerror}; "
                "put that right and repeat the command, which goes on from here"
            ) from error

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
        tail = os.pread(descriptor, size - end, end)
        if whole := _whole(tail):
            os.ftruncate(descriptor, end + whole)
            write_all(descriptor, b"\n")
            os.fsync(descriptor)
            _log.warning("journal %s: the newline behind its last record was missing", self._path)
            return
        _append(self._path + ".torn", tail + b"\n")
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
        _log.warning("journal %s had a torn last line: %d bytes moved to .torn", self._path, size - end)

    def _parsed(self, line: bytes, mark: Mark) -> dict[str, Any]:
        try:
            record = unsealed(line)
            place = place_of(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(self._damage(mark, str(error))) from error
        if "op_code" not in record or is_deep(record):
            raise ConfigError(self._damage(mark, "not a journal record"))
        if place not in (None, mark.place(line)):
            raise ConfigError(self._damage(mark, f"it is record {place.number}, so lines are missing"))
        return record

    def _damage(self, mark: Mark, why: str) -> str:
        return (
            f"journal {self._path} is damaged at byte {mark.offset} (record {mark.number}): {why}; "
            f"`nas repair {Path(self._path).parent}` saves the records before and after the damage"
        )

    def _check_same(self, descriptor: int, mark: Mark) -> None:
        """Refuses a file of which what was read up to a mark is not there any more."""
        if os.pread(descriptor, len(mark.tail), mark.offset - len(mark.tail)) != mark.tail:
            raise ConfigError(
                f"journal {self._path} is not the one of which {mark.offset} bytes were read: it was cut or "
                "replaced while in use; start this process again"
            )


@dataclass
class _Attempt:
    """What an append has tried to write, and where."""

    offset: int = 0
    data: bytes = b""

    def stands(self, descriptor: int) -> bool:
        """Whether it is there after all: neither its end nor its undoing could be confirmed."""
        return self.data != b"" and os.pread(descriptor, len(self.data), self.offset) == self.data


def _whole(tail: bytes) -> int:
    """How many bytes of a last line without newline are a whole sealed record: all, all but one, or 0."""
    for length in (len(tail), len(tail) - 1):
        try:
            if place_of(tail[:length] + b"\n") is not None:
                return length
        except ValueError:
            continue
    return 0


def _passing(error: Exception) -> str:
    """Why a file cannot be used now but perhaps later, or nothing."""
    passes = isinstance(error, OSError) and error.errno in _PASSING
    return str(error.strerror) if isinstance(error, OSError) and passes else ""


def _mount(path: Path) -> Path:
    """The mount that a file is on."""
    return next(folder for folder in path.absolute().parents if folder.is_mount())


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
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
