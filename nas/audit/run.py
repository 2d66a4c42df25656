"""The whole audit of a task, and the folder that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nas.audit.duplicates import copies, groups, near_copies
from nas.audit.findings import Audit
from nas.audit.image_features import Pool, features
from nas.audit.labels import balance, imbalance, mislabels, named_backend, outliers, remarks
from nas.data.exclusions import KINDS, Suspect, list_of
from nas.data.task import Task
from nas.files.atomic import write_json

AUDIT_FILES = ("audit.json", "suspects.json", "suspects.png")
"""What an audit leaves in its folder."""


def audit_task(task: Task, *, backend: str = "own", seed: int = 0) -> Audit:
    """Looks for what may be wrong with a task's images and labels; nothing is changed.

    All three splits are looked at together. On one core some thousand images take less than a minute; the
    search for copies and outliers grows with the square of the images, all else in proportion.

    backend: what names the wrong labels, `own` or `cleanlab` (an extra). seed: of the networks that predict.

    Raises:
        ConfigError: when the backend is unknown or not installed.
    """
    pool = Pool.of(task)
    counts = balance(pool)
    near = near_copies(pool)
    found = groups(pool, near)
    described = features(pool.small, seed)
    labels, wrong = mislabels(pool, described, found, seed=seed, backend=named_backend(backend))
    suspects = [
        *_corrupt(task.skipped),
        *copies(pool, found, near),
        *wrong,
        *outliers(pool, described),
    ]
    return Audit(
        task=task.name,
        fingerprint=task.fingerprint,
        seed=seed,
        backend=backend,
        counts=counts,
        imbalance=imbalance(counts),
        groups=tuple(found),
        near_threshold=near.threshold,
        labels=labels,
        suspects=tuple(sorted(suspects, key=lambda suspect: KINDS.index(suspect.kind))),
        remarks=tuple(remarks(counts)),
    )


def _corrupt(skipped: Sequence[str]) -> list[Suspect]:
    """Files that could not be used, as `Task.skipped` names them."""
    parts = [line.partition(": ") for line in skipped]
    return [Suspect("corrupt", "", -1, file, "", "", "", -1, 1.0, reason) for file, _, reason in parts]


def write_audit(found: Audit, task: Task, folder: Path) -> list[Path]:
    """Writes audit.json, suspects.json and, where there are images to show, suspects.png."""
    from nas.audit.contact_sheet import draw_sheet
    from nas.show.draw import save

    report, listed, picture = (folder / name for name in AUDIT_FILES)
    write_json(report, found.to_dict())
    write_json(listed, list_of(task, found.suspects))
    figure = draw_sheet(task, found.suspects, title=f"Suspects of {found.task}")
    if figure is None:
        return [report, listed]
    save(figure, picture)
    return [report, listed, picture]
