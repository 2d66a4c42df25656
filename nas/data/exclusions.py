"""Lists of suspect images, `suspects.json`, and tasks without the images that such a list names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from nas.data.arrays import Labels, digest
from nas.data.loading import load_task, mean_and_std
from nas.data.task import Split, Task
from nas.errors import ConfigError, DataError, counted
from nas.files.atomic import read_json, sha256
from nas.files.schemas import check_format, checked

Kind = Literal["corrupt", "leak", "duplicate", "mislabel", "outlier"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS = ("train", "val", "test")
FORMAT = 1
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image that may be wrong.

    split: train, val or test; empty for a file that could not be read.
    origin: its position in the source, the training part first, then the test part; -1 if it was not read.
    file: relative to the task's folder; empty where images do not lie in files of their own.
    digest: of its pixels, in hex.
    given: the class that it has.
    suggested: the class that predictions suggest; empty if none.
    of: for a copy, the origin of the image that may stay; else -1.
    score: how suspect it is, larger is more so; comparable within a kind only.
    reason: in words.
    """

    kind: Kind
    split: str
    origin: int
    file: str
    digest: str
    given: str
    suggested: str
    of: int
    score: float
    reason: str


@dataclass(frozen=True)
class _List:
    """The content of a suspects.json."""

    format: int
    task: str
    suspects: list[Suspect]


def list_of(task: Task, suspects: Sequence[Suspect]) -> dict[str, object]:
    """The content of a suspects.json."""
    return asdict(_List(FORMAT, task.name, list(suspects)))


def load_without(task: str | Task, listed: str | Path | None, *, seed: int) -> Task:
    """A task without the images that a list names, see `without`; all of it without a list.

    task: one that is loaded already, or the name of one to load, whose splits follow from `seed`.

    Files that the list calls corrupt may be any number; another one that cannot be used is an error.
    """
    if listed is None:
        return load_task(task, seed=seed) if isinstance(task, str) else task
    if isinstance(task, str):
        path, _, suspects = _read(listed)
        known = tuple(f"{suspect.file}: " for suspect in suspects if suspect.kind == "corrupt")
        task = load_task(task, seed=seed, lenient=bool(known))
        if known and (unknown := [line for line in task.skipped if not line.startswith(known)]):
            raise DataError(
                f"{path} does not name {counted(len(unknown), 'file')} of {task.name} that cannot be used "
                f"({unknown[0]}); run nas audit again"
            )
    return without(task, listed)


def without(task: Task, listed: str | Path) -> Task:
    """A task without the images that a list names, which leave the splits that they are in.

    Mean and deviation are those of the training images that stay. The fingerprint changes with the list. A
    test split without images that networks got wrong is easier than the whole one.

    task: as loaded, not cut. listed: a suspects.json, or `PATH:KINDS` for some kinds only, e.g.
      `suspects.json:mislabel,leak`.

    Raises:
        ConfigError: when the list cannot be read.
        DataError: when it is about other images than the task's, or takes all images of a class in a split.
    """
    path, kinds, suspects = _read(listed)
    gone = _origins(task, [suspect for suspect in suspects if suspect.origin >= 0], path)
    kept = {name: _kept(task, name, split, gone, path) for name, split in task.splits.items()}
    fewer = {name: len(split) - len(kept[name]) for name, split in task.splits.items()}
    mean, std = mean_and_std(kept["train"].x)
    content, kinds = sha256(path), sorted(kinds)
    told = ", ".join(f"{count} of {name}" for name, count in fewer.items())
    return replace(
        task,
        train=kept["train"],
        val=kept["val"],
        test=kept["test"],
        mean=mean,
        std=std,
        fingerprint=hashlib.sha256(repr((task.fingerprint, content, kinds)).encode()).hexdigest(),
        notes=(*task.notes, f"left out by {path}: {told}"),
        excluded={"sha256": content, "kinds": kinds, "images": fewer},
    )


def _read(listed: str | Path) -> tuple[Path, Sequence[str], list[Suspect]]:
    """The path of a list, the kinds behind its last colon or else all, and its suspects of these kinds."""
    before, _, tail = str(listed).rpartition(":")
    kinds: Sequence[str] = tail.split(",")
    path = Path(before)
    if not before or not set(kinds) <= set(KINDS):
        path, kinds = Path(listed), KINDS
    if not path.is_file():
        raise ConfigError(
            f"exclude: no list {str(path)!r} (looked from {Path.cwd()}); wanted a suspects.json of nas "
            f"audit, or PATH:KINDS with kinds of {', '.join(KINDS)}"
        )
    data = read_json(path, max_bytes=_MOST_BYTES)
    check_format(data, FORMAT, path)
    record = checked(_List, data, path, "list of suspects")
    return path, kinds, [suspect for suspect in record.suspects if suspect.kind in kinds]


def _origins(task: Task, suspects: Sequence[Suspect], path: Path) -> Labels:
    """Positions of the listed images; files that are no longer there need not be left out."""
    place = {file: number for number, file in enumerate(task.files)}
    wanted = {
        (place.get(suspect.file, -1) if task.files else suspect.origin): suspect
        for suspect in suspects
        if not task.files or suspect.file in place
    }
    wrong = set(wanted)
    for split in task.splits.values():
        for index, origin in enumerate(_origin(task, split).tolist()):
            if (suspect := wanted.get(origin)) is None:
                continue
            same = digest(split.x[index].cpu().numpy()).hex() == suspect.digest
            if same and task.classes[int(split.y[index])] == suspect.given:
                wrong.discard(origin)
    if wrong:
        first = wanted[min(wrong)]
        raise DataError(
            f"{path} is about other images than those of task {task.name!r}: {len(wrong)} of {len(wanted)} "
            f"are not there or changed, first {first.file or first.origin} ({first.given}); run nas audit "
            "again"
        )
    return np.array(sorted(wanted), dtype=np.int64)


def _origin(task: Task, split: Split) -> Labels:
    if split.origin is None:
        raise DataError(f"exclude: it is not known where the images of task {task.name!r} come from")
    return split.origin.numpy()


def _kept(task: Task, name: str, split: Split, gone: Labels, path: Path) -> Split:
    kept = split.at(np.flatnonzero(~np.isin(_origin(task, split), gone)))
    lost = set(split.y.tolist()) - set(kept.y.tolist())
    if lost:
        classes = ", ".join(repr(task.classes[label]) for label in sorted(lost))
        raise DataError(
            f"exclude: {path} takes all images of class {classes} from {name}; remove some from the list"
        )
    return kept
