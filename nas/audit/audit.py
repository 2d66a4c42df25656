"""The whole audit of a task: what it found, in a few lines for people, and the folder that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nas.audit.duplicates import Group, copies, groups, near_copies
from nas.audit.images import ImageTable, features, outliers
from nas.audit.labels import LabelErrors, mislabels
from nas.data.exclusions import KINDS, Suspect, list_of
from nas.data.task import Task
from nas.errors import ConfigError, counted
from nas.files.atomic import write_json

AUDIT_FILES = ("audit.json", "suspects.json", "suspects.png")
"""What an audit leaves in its folder."""
UNEQUAL = 3.0
"""Ratio of the largest to the smallest class from which the audit speaks of it."""
_FORMAT = 1
_WORDS = {
    "corrupt": "files that cannot be used",
    "leak": "copies across splits",
    "duplicate": "copies within a split",
    "mislabel": "likely mislabels",
    "outlier": "outliers",
}
_LISTED = 5


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    counts: images by split and class. imbalance: images of the largest class over those of the smallest.
    groups: copies. near_threshold: distance below which images count as near-copies, see
      `nas.audit.duplicates.near_copies`. suspects: by kind, the most suspect first.
    remarks: what else should be known, one sentence each.
    """

    task: str
    fingerprint: str
    seed: int
    counts: Mapping[str, Mapping[str, int]]
    imbalance: float
    groups: tuple[Group, ...]
    near_threshold: float
    labels: LabelErrors
    suspects: tuple[Suspect, ...]
    remarks: tuple[str, ...]

    def of_kind(self, kind: str) -> list[Suspect]:
        """The suspects of one kind."""
        return [suspect for suspect in self.suspects if suspect.kind == kind]

    def to_dict(self) -> dict[str, object]:
        """The content of audit.json; the suspects have a file of their own."""
        plain = asdict(self)
        plain["suspects"] = {kind: len(self.of_kind(kind)) for kind in KINDS}
        for group in plain["groups"]:
            del group["members"]
        return {"format": _FORMAT, **plain}

    def summary(self) -> list[str]:
        """The findings in a few lines."""
        sizes = ", ".join(f"{sum(part.values()):,} {name}" for name, part in self.counts.items())
        classes = len(next(iter(self.counts.values())))
        lines = [_line("images", f"{sizes}; {classes} classes, largest to smallest {self.imbalance:.1f}")]
        for kind in KINDS:
            found = self.of_kind(kind)
            lines.append(_line(_WORDS[kind], f"{len(found):,}{self._of_copies(kind)}"))
            listed = found[:_LISTED] if kind == "corrupt" else []
            lines += [_line("", f"{suspect.file}: {suspect.reason}") for suspect in listed]
        if self.labels.judged:
            noise = f"{self.labels.noise:.1%} (95 % interval {self.labels.low:.1%} to {self.labels.high:.1%})"
            lines.append(_line("share of wrong labels", f"at most about {noise}"))
        confused = self.labels.confused[:_LISTED]
        lines += [_line("", f"{count} of {given} look like {other}") for given, other, count in confused]
        return [*lines, *(f"note: {remark}" for remark in (*self.remarks, self.labels.reason) if remark)]

    def _of_copies(self, kind: str) -> str:
        if kind not in ("leak", "duplicate"):
            return ""
        alike = [group for group in self.groups if (len(group.splits) > 1) == (kind == "leak")]
        contrary = sum(len(group.classes) > 1 for group in alike)
        exact = sum(group.exact for group in alike)
        told = f" in {len(alike)} groups, {exact} of them exact" if alike else ""
        return told + (f", {contrary} with contradictory labels" if contrary else "")


def _line(name: str, text: str) -> str:
    return f"{name:<30} {text}"


def audit_task(task: Task, *, seed: int = 0) -> Audit:
    """Looks for what may be wrong with a task's images and labels; nothing is changed.

    All three splits are looked at together. On one core some thousand images take less than a minute; the
    search for copies and outliers grows with the square of the images, all else in proportion.

    seed: of the features and of the divisions for the predictions.
    """
    if not task.classes:
        raise ConfigError(f"audit: task {task.name!r} is for {task.problem.name}, wanted one of classes")
    table = ImageTable.of(task)
    counts = {
        name: dict(zip(task.classes, split.y.bincount(minlength=task.num_classes).tolist(), strict=True))
        for name, split in task.splits.items()
    }
    totals = [sum(part[label] for part in counts.values()) for label in task.classes]
    imbalance = max(totals) / max(1, min((total for total in totals if total), default=1))
    near = near_copies(table)
    found = groups(table, near)
    described = features(table.small, seed)
    labels, wrong = mislabels(table, described, found, seed=seed)
    unusable = (line.partition(": ") for line in task.skipped)
    corrupt = [Suspect("corrupt", "", -1, file, "", "", "", -1, 1.0, reason) for file, _, reason in unusable]
    suspects = [*corrupt, *copies(table, found, near), *wrong, *outliers(table, described)]
    remarks = [
        f"{name} has no image of {counted(len(missing), 'class')}: {', '.join(missing[:10])}"
        for name, part in counts.items()
        if (missing := [label for label, count in part.items() if not count])
    ]
    if np.count_nonzero(totals) < 2:
        remarks.append("all images are of one class, so there is nothing to tell apart")
    if imbalance >= UNEQUAL:
        remarks.append(f"the largest class has {imbalance:.1f} times the images of the smallest")
    return Audit(
        task=task.name,
        fingerprint=task.fingerprint,
        seed=seed,
        counts=counts,
        imbalance=imbalance,
        groups=tuple(found),
        near_threshold=near.threshold,
        labels=labels,
        suspects=tuple(sorted(suspects, key=lambda suspect: KINDS.index(suspect.kind))),
        remarks=tuple(remarks),
    )


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
