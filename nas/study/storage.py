"""Where a history is kept, a journal in the run's folder or a database; and how trials are written there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.errors import ConfigError, StorageError, describe
from nas.files.atomic import read_json, replacing
from nas.files.folder import HISTORY, MANIFEST, check_contents, exists
from nas.files.schemas import TrialRecord, checked
from nas.searchers.goals import Goals
from nas.space.space import Space
from nas.study.address import Address, find_address
from nas.types import Trial

T = TypeVar("T")
_log = logging.getLogger("nas")

JOURNAL = HISTORY
MOST = 2**24
"""Bytes of a record of a journal."""
OWNER = "owner"
"""The attribute of a study in a database that says which process writes it."""
UNDER_WAY = "under way"
"""The attribute of a study that lists the trials which have been proposed and have not ended."""
DAMAGED = (LookupError, ValueError, TypeError, AttributeError, AssertionError, DuplicatedStudyError)
"""What Optuna raises of records that are none."""
AWAY = (StorageInternalError, OSError)
"""What a storage raises that may be back later: a server that restarts, a disk that is full."""
State = Literal["running", "done", "failed"]
_STATES: dict[TrialState, State] = {TrialState.COMPLETE: "done", TrialState.FAIL: "failed"}


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


@dataclass(frozen=True)
class Store:
    """A storage, and how its only writer uses it.

    prefix: stands before the names of studies in it. patience_s: for how long it is waited for while it is
    away, or full; stop: asked meanwhile; may raise. force: take over studies in a database whose writer is
    gone with its machine.
    """

    storage: BaseStorage
    prefix: str = ""
    patience_s: float = 600.0
    stop: Callable[[], object] = lambda: None
    force: bool = False

    def patiently(self, work: Callable[[], T], *, what: str) -> T:
        """Does what the storage is asked for, again and again, after growing pauses, while it is away.

        Raises:
            StorageError: when it is still away after `patience_s`.
        """
        until_s, pause_s = time.monotonic() + self.patience_s, 0.5
        while True:
            try:
                return work()
            except AWAY as error:
                if time.monotonic() >= until_s:
                    raise StorageError(
                        getattr(error, "errno", None),
                        f"{what}: {describe(error)}, for {self.patience_s:g} s; what was told before is "
                        "kept, and the same command goes on",
                    ) from error
                _log.warning("%s: %s; trying again for up to %g s", what, describe(error), self.patience_s)
            self.stop()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)


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


def own(study: optuna.Study, *, force: bool = False) -> None:
    """Makes this process the one that writes a study in a database.

    A journal needs no such record: its file is locked.

    Raises:
        ConfigError: when another process writes it, or may do so on another machine.
    """
    now, known = {"host": socket.gethostname(), "pid": os.getpid()}, study.user_attrs.get(OWNER)
    if isinstance(known, dict) and not force and (known["host"] != now["host"] or _lives(known["pid"])):
        raise ConfigError(
            f"study {study.study_name!r} is written by process {known['pid']} on {known['host']}; wait for "
            "it, or where it is gone, go on with --force"
        )
    study.set_user_attr(OWNER, now)


def _lives(pid: object) -> bool:
    return isinstance(pid, int) and pid != os.getpid() and Path(f"/proc/{pid}").exists()


# -- studies and trials in Optuna's terms --------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """Turns the trials of one study into Optuna's and back. name: of the study."""

    space: Space
    goals: Goals
    name: str

    def write(self, trial: Trial, worker: str = "") -> FrozenTrial:
        """A trial that has ended, as Optuna keeps it. worker: who did it, in words."""
        done = trial.state == "done"
        bounds = {str(bound): bound.excess(trial.metrics) for bound in self.goals.constraints if done}
        return create_trial(
            state=TrialState.COMPLETE if done else TrialState.FAIL,
            values=[o.value(trial.metrics) for o in self.goals.objectives] if done else None,
            constraints=bounds or None,
            params=self.space.choices(trial.genotype),
            distributions={d.name: CategoricalDistribution(d.options) for d in self.space.decisions},
            user_attrs={"nas": _record(trial, worker)},
        )

    def read(self, frozen: FrozenTrial) -> Trial:
        """The inverse of `write`.

        Raises:
            ConfigError: when the trial was not written by this engine.
        """
        source = f"study {self.name!r}, trial {frozen.number}"
        if "nas" not in frozen.user_attrs or frozen.state not in _STATES:
            raise ConfigError(
                f"{source} was not written by this engine; only its own studies can be continued"
            )
        trial = _trial(frozen.user_attrs["nas"], source, _STATES[frozen.state])
        return replace(trial, genotype=self.space.genotype(frozen.params))

    def read_all(self, study: optuna.Study) -> list[Trial]:
        """The ended trials of a study, and those that were under way in their places."""
        ended = [self.read(frozen) for frozen in study.get_trials(deepcopy=False)]
        begun = {trial.number: trial for trial in (*under_way(study), *ended)}
        if sorted(begun) != list(range(len(begun))):
            raise ConfigError(
                f"study {self.name!r}: {len(begun)} trials have numbers up to {max(begun)}; some of its "
                "records are lost, so that it can only be read by Optuna"
            )
        return [begun[number] for number in range(len(begun))]


def _record(trial: Trial, worker: str = "") -> dict[str, Any]:
    """A trial as a record in JSON; its state is told by where it stands."""
    record = TrialRecord.model_validate({**asdict(trial), "worker": worker}, strict=False)
    return record.model_dump(mode="json", exclude_defaults=True)


def _trial(record: object, source: str, state: State) -> Trial:
    """The inverse of `_record`. Raises ConfigError when it is damaged."""
    found = checked(TrialRecord, record, source, "record of a trial").model_dump(exclude={"worker"})
    return Trial(state=state, **found)


def note_under_way(study: optuna.Study, trials: Sequence[Trial]) -> None:
    """Writes down the trials of a study that have been proposed and have not ended."""
    study.set_user_attr(UNDER_WAY, [_record(trial) for trial in trials])


def under_way(study: optuna.Study) -> list[Trial]:
    """The trials of a study that have been proposed, and may not have ended."""
    source = f"study {study.study_name!r}, trials under way"
    return [_trial(record, source, "running") for record in study.user_attrs.get(UNDER_WAY, [])]


def read_trials(folder: Path, name: str, space: Space) -> list[Trial]:
    """The history of one study of the run in a folder, empty where there is none; nothing is written."""
    if not exists(folder):
        return []
    check_contents(folder)
    with reading(folder / JOURNAL):
        found = past_storage(folder)
        if found is None or found[1] + name not in optuna.get_all_study_names(found[0]):
            return []
        study = optuna.load_study(study_name=found[1] + name, storage=found[0])
        return Record(space, recorded_goals(study, space, None), name).read_all(study)


def open_study(storage: BaseStorage, name: str, goals: Goals) -> optuna.Study:
    """The study of that name, which is made where there is none."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    if name in optuna.get_all_study_names(storage):
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    directions = [
        StudyDirection.MAXIMIZE if o.maximize else StudyDirection.MINIMIZE for o in goals.objectives
    ]
    return optuna.create_study(study_name=name, storage=storage, sampler=sampler, directions=directions)


def recorded_goals(study: optuna.Study, space: Space, goals: Goals | None) -> Goals:
    """Writes down what the study is for, or checks that it still is; returns the goals.

    Raises:
        ConfigError: when it was made for another space or other goals.
    """
    wanted, name = goals or Goals(), study.study_name
    decisions = [[d.name, list(d.options)] for d in space.decisions]
    known = study.user_attrs.get("nas")
    if known is None:
        study.set_user_attr("nas", {"decisions": decisions, **wanted.to_dict()})
        return wanted
    if not isinstance(known, dict) or known.get("decisions") != decisions:
        raise ConfigError(
            f"study {name!r} was made for a space with other decisions than {space.name!r}; "
            "use another name or another folder"
        )
    before = Goals.from_dict(known)
    if goals not in (None, before):
        raise ConfigError(
            f"study {name!r} was made for {before}, not for {goals}; use another name or folder"
        )
    return before
