"""The history of one run: its own studies, wherever they are kept."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import optuna
from optuna.storages import BaseStorage
from optuna.storages._base import DEFAULT_STUDY_NAME_PREFIX
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial

from nas.errors import ConfigError
from nas.files.atomic import read_json, replacing
from nas.files.manifest import MANIFEST
from nas.storage.address import Address, find_address
from nas.storage.finishing import Finisher, finish_trial
from nas.storage.forwarding import Forwarding
from nas.storage.journal import JOURNAL, journal_storage
from nas.storage.parked import PARKED, Park
from nas.storage.patience import PATIENT, Patience

T = TypeVar("T")
_log = logging.getLogger("nas")


def open_storage(where: Path | str, *, patience: Patience = PATIENT) -> BaseStorage:
    """An Optuna storage: the journal at a path, or the database that a URL names.

    patience: with a server that goes away, or a disk that is full; opening itself does not wait.

    Raises:
        ConfigError: when it cannot be used; passwords in URLs are never shown.
    """
    if isinstance(where, Path):
        return journal_storage(where, patience=patience)
    from nas.storage.patient import PatientStorage

    return PatientStorage(where if isinstance(where, Address) else Address(where), patience)


def check_storage(address: Address) -> None:
    """Raises ConfigError when a database cannot be used."""
    from nas.storage.database import open_database

    open_database(address).close()


class RunStorage(Forwarding, Finisher):
    """The studies of one run among those of others, as if they were alone.

    run: stands before the names of its studies in the database, `RUN/STUDY`; nothing does in a journal.
    park: where finished results wait until they are told.

    Raises:
        ConfigError: when a study that is in use is there no more.
    """

    def __init__(self, inner: BaseStorage, *, run: str = "", park: Park | None = None) -> None:
        super().__init__(inner)
        self._before = f"{run}/" if run else ""
        self._park = park
        self._names: dict[int, str] = {}

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """See `BaseStorage`."""
        name = f"{DEFAULT_STUDY_NAME_PREFIX}{uuid4()}" if study_name is None else study_name
        study_id = super().create_new_study(directions, self._before + name)
        self._names[study_id] = name
        return study_id

    def delete_study(self, study_id: int) -> None:
        """See `BaseStorage`."""
        super().delete_study(study_id)
        self._names.pop(study_id, None)

    def get_study_id_from_name(self, study_name: str) -> int:
        """See `BaseStorage`."""
        study_id = super().get_study_id_from_name(self._before + study_name)
        self._names[study_id] = study_name
        return study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        """See `BaseStorage`."""
        return super().get_study_name_from_id(study_id).removeprefix(self._before)

    def get_all_studies(self) -> list[FrozenStudy]:
        """Those of this run."""
        own = []
        for study in super().get_all_studies():
            if study.study_name.startswith(self._before):
                own.append(copy.copy(study))
                own[-1].study_name = study.study_name.removeprefix(self._before)
        return own

    def finish_trial(self, study_id: int, number: int, outcome: FrozenTrial) -> bool:
        """Ends a running trial; false when it had ended already, in another way.

        What stops this on the way, a stop request or the end of the patience, leaves the result parked.
        """
        name = self._names.get(study_id) or self.get_study_name_from_id(study_id)
        if self._park is not None:
            self._park.put(name, number, outcome)
        first = self._call(lambda: finish_trial(self.inner, study_id, number, outcome))
        if self._park is not None:
            self._park.drop(name, number)
        return first

    def tell_parked(self) -> None:
        """Tells what an earlier process had parked.

        Raises:
            ConfigError: when the database does not know the trial of a result, which stays parked.
        """
        park = self._park
        if park is None:
            return
        for study, number, outcome in park:
            try:
                first = self.finish_trial(self.get_study_id_from_name(study), number, outcome)
            except KeyError as error:
                raise ConfigError(
                    f"{park.folder} holds the result of trial {number} of study {self._before + study!r}, "
                    "which is not in the storage: was it deleted or renamed? Restore it, or move that folder "
                    "away to go on without the result"
                ) from error
            kept = "told" if first else "dropped, because another result was there before"
            _log.warning("parked result of trial %d of study %r: %s", number, study, kept)

    def _call(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except KeyError as error:
            if gone := self._gone():
                raise ConfigError(
                    f"study {self._before + gone!r} is no longer in its storage: it was deleted while this "
                    "job was running; results that were not told are kept in the run's folder"
                ) from error
            raise

    def _gone(self) -> str | None:
        """A study that was opened here and is there no more."""
        there = {study._study_id for study in self.inner.get_all_studies()}
        return next((name for number, name in self._names.items() if number not in there), None)


def run_storage(
    folder: Path, address: Address | None, *, run: str, patience: Patience = PATIENT
) -> BaseStorage:
    """Where a run writes its history; results that an earlier process had parked are told first.

    address: of a database, whole; None is the journal in the folder. run: its name among others in there.
    """
    if address is None:
        return RunStorage(open_storage(folder / JOURNAL, patience=patience))
    storage = RunStorage(open_storage(address, patience=patience), run=run, park=Park(folder / PARKED))
    storage.tell_parked()
    return storage


def past_storage(folder: Path) -> BaseStorage | None:
    """The history of a run, to be read only; None where there is none yet.

    Of a finished run it is the journal in its folder, whatever it was written to; see `keep_history`.

    Raises:
        ConfigError: when it is in a database that is not given in `NAS_STORAGE`.
    """
    if (folder / JOURNAL).is_file():
        return open_storage(folder / JOURNAL)
    if (folder / MANIFEST).is_file():
        return None
    record = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    config = record.get("config") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(config, dict) or not config.get("storage"):
        return None
    address = find_address(Address(str(config["storage"])), recorded=True)
    return RunStorage(open_storage(address), run=str(record.get("run"))) if address is not None else None


def keep_history(storage: BaseStorage, folder: Path) -> None:
    """Copies a run's studies into the journal of its folder, where they stay readable without a database."""
    with replacing(folder / JOURNAL) as temporary:
        journal = journal_storage(temporary)
        for study in storage.get_all_studies():
            optuna.copy_study(
                from_study_name=study.study_name,
                from_storage=storage,
                to_storage=journal,
                to_study_name=study.study_name,
            )
    if (folder / PARKED).is_dir() and not any((folder / PARKED).iterdir()):
        (folder / PARKED).rmdir()
