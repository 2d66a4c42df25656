"""A damaged journal made whole again, without the records that are lost, and a report of what these were."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas.errors import ConfigError
from nas.files.atomic import replacing
from nas.files.folder_lock import FolderLock
from nas.files.kernel_lock import KernelLock
from nas.storage.journal import JOURNAL, journal_storage
from nas.storage.journal_file import SafeJournalBackend
from nas.storage.rebuild import Loss, Rebuilding
from nas.storage.salvage import pieces
from nas.text import counted


@dataclass(frozen=True)
class Repair:
    """What was done to a journal.

    records: that it has now. mended: places where one flipped bit was put right, at no loss.
    affected: what the losses mean for studies and trials, in words.
    original: where the damaged file is kept; None where nothing was wrong.
    """

    path: Path
    records: int
    mended: int
    losses: Sequence[Loss]
    affected: Sequence[str]
    original: Path | None

    def lines(self) -> list[str]:
        """The report."""
        if self.original is None:
            return [f"{self.path} is whole: {counted(self.records, 'record')}"]
        return [
            f"{self.path}: {counted(self.records, 'record')}, {self.mended} of them put right by a bit",
            *(f"lost at {loss}" for loss in self.losses),
            *self.affected,
            f"the damaged file is kept as {self.original}",
        ]

    def to_dict(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "journal": str(self.path),
            "records": self.records,
            "mended": self.mended,
            "lost": [asdict(loss) for loss in self.losses],
            "affected": list(self.affected),
            "original": None if self.original is None else str(self.original),
        }


def repair(folder: Path) -> Repair:
    """Makes the journal of a run readable again; `nas.storage.rebuild` says what becomes of damaged trials.

    The damaged file stays beside it, as `study.log.damaged-1` and so on.

    Raises:
        ConfigError: when there is no journal, it cannot be written or is a link, or the run is in progress.
    """
    path = (folder / JOURNAL).absolute()
    if not path.is_file():
        raise ConfigError(f"{folder} holds no journal, {JOURNAL}; a history in a database is repaired there")
    try:
        # Workers that joined hold no lock on the folder; they write once the new journal is in place.
        with FolderLock(folder), _writing_to(path):
            data = path.read_bytes()
            found, mended = pieces(data)
            built = Rebuilding(found)
            damaged = mended or built.losses or built.affected or (data and not data.endswith(b"\n"))
            original = _replace(path, built.records) if damaged else None
    except OSError as error:
        raise ConfigError(f"cannot repair {path}: {error.strerror}") from error
    return Repair(path, len(built.records), mended, built.losses, built.affected, original)


@contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    """Keeps all others from writing to a journal."""
    lock = KernelLock(str(path))
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _replace(path: Path, records: list[dict[str, Any]]) -> Path:
    """Puts a journal of these records in the place of the damaged one, which is kept under a new name."""
    number = 1
    while (kept := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    shutil.copy2(path, kept)
    with replacing(path) as temporary:
        SafeJournalBackend(temporary).append_logs(records)
        journal_storage(temporary)  # Optuna can read it
        shutil.copymode(path, temporary)
    return kept
