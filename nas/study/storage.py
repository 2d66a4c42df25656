"""Where a history is kept: a journal in the run's folder, or a database; and who may write it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from nas.errors import ConfigError, StorageError, describe
from nas.files.atomic import read_json, replacing
from nas.files.folder import MANIFEST
from nas.study.address import Address, find_address

T = TypeVar("T")
_log = logging.getLogger("nas")

JOURNAL = "study.log"
MOST = 2**24
"""Bytes of a record of a journal."""
OWNER = "owner"
"""The attribute of a study in a database that says which process writes it."""
DAMAGED = (LookupError, ValueError, TypeError, AttributeError, AssertionError, DuplicatedStudyError)
"""What Optuna raises of records that are none."""
AWAY = (StorageInternalError, OSError)
"""What a storage raises that may be back later: a server that restarts, a disk that is full."""


class Journal(BaseJournalBackend):
    """A file of JSON lines for Optuna's `JournalStorage`, which one process writes and any may read.

    All of what is appended gets there, or nothing. A line that was torn when its writer was killed is no
    record: readers pass over it, and the next writer removes it. A disk that is full leaves the file as it
    was, and the caller may try again.

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
                except (ValueError, RecursionError) as error:
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
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":  # torn when its writer was killed
                size = file.seek(self.path.read_bytes().rfind(b"\n") + 1)
                file.truncate()
            try:
                rest = memoryview(lines)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise

    def _begin(self) -> None:
        """Before the first record: makes this process the only writer."""
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


_written: dict[tuple[int, int], int] = {}
"""The files that this process writes, with the descriptors that hold their locks until it ends."""


def open_storage(where: Path | str) -> BaseStorage:
    """An Optuna storage: the journal at a path, or the database that a URL names.

    Raises:
        ConfigError: when it cannot be used; passwords in URLs are never shown.
    """
    if isinstance(where, Path):
        with reading(where):
            return JournalStorage(Journal(where))
    address = where if isinstance(where, Address) else Address(where)
    try:
        return RDBStorage(address.secret, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        raise ConfigError(
            f"storage {address} needs a driver that is not installed ({error.name}): pip install "
            "'nas-engine[postgres]'"
        ) from None
    except Exception as error:  # noqa: BLE001 - of any driver; its message may hold the password
        why = address.hide(next(iter(str(error).splitlines()), type(error).__name__))
        raise ConfigError(f"storage {address} cannot be used: {why}") from None


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Runs a block that reads a history, and says so where it is damaged."""
    try:
        yield
    except DAMAGED as error:
        raise ConfigError(f"{where} is damaged: {describe(error)}; restore it from a copy") from error


def past_storage(folder: Path) -> tuple[BaseStorage, str] | None:
    """The history of a run, to be read only, and what stands before its studies' names; None without one.

    Of a finished run it is the journal in its folder, whatever it was written to; see `keep_history`.

    Raises:
        ConfigError: when it is in a database that is not given in `NAS_STORAGE`.
    """
    if (folder / JOURNAL).is_file():
        return open_storage(folder / JOURNAL), ""
    if (folder / MANIFEST).is_file() or not (folder / "run.json").is_file():
        return None
    record = read_json(folder / "run.json")
    config = record.get("config") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(config, dict) or not config.get("storage"):
        return None
    address = find_address(Address(str(config["storage"])), recorded=True)
    return None if address is None else (open_storage(address), f"{record.get('run')}/")


def keep_history(storage: BaseStorage, prefix: str, folder: Path) -> None:
    """Copies a run's studies into the journal of its folder, where they stay readable without a database."""
    with replacing(folder / JOURNAL) as temporary:
        journal = open_storage(temporary)
        for name in optuna.get_all_study_names(storage):
            if name.startswith(prefix):
                optuna.copy_study(
                    from_study_name=name,
                    from_storage=storage,
                    to_storage=journal,
                    to_study_name=name.removeprefix(prefix),
                )


def patiently(work: Callable[[], T], *, what: str, patience_s: float, stop: Callable[[], object]) -> T:
    """Does what a storage is asked for, again and again while it is away.

    stop: asked between two tries; may raise.

    Raises:
        StorageError: when it is still away after `patience_s`.
    """

    def waiting(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if error is not None:
            _log.warning("%s: %s; trying again for up to %g s", what, describe(error), patience_s)
        stop()

    tries = Retrying(
        retry=retry_if_exception_type(AWAY),
        stop=stop_after_delay(patience_s),
        wait=wait_exponential(0.5, max=5.0),
        before_sleep=waiting,
        reraise=True,
    )
    try:
        return tries(work)
    except AWAY as error:
        raise StorageError(
            getattr(error, "errno", None),
            f"{what}: {describe(error)}, for {patience_s:g} s; what was told before is kept, and the same "
            "command goes on",
        ) from error


def own(study: optuna.Study, *, force: bool = False) -> None:
    """Makes this process the one that writes a study in a database.

    A journal needs no such record: its file is locked.

    Raises:
        ConfigError: when another process writes it, or may do so on another machine.
    """
    now = {"host": socket.gethostname(), "pid": os.getpid(), "token": token_hex(8)}
    known = study.user_attrs.get(OWNER)
    if isinstance(known, dict) and not force and (known["host"] != now["host"] or _lives(known["pid"])):
        raise ConfigError(
            f"study {study.study_name!r} is written by process {known['pid']} on {known['host']}; wait for "
            "it, or where it is gone, go on with --force"
        )
    study.set_user_attr(OWNER, now)
    if study.user_attrs.get(OWNER) != now:
        raise ConfigError(f"study {study.study_name!r}: another process began to write it at the same time")


def _lives(pid: object) -> bool:
    return isinstance(pid, int) and pid != os.getpid() and Path(f"/proc/{pid}").exists()
