"""What an audit found: values, their JSON, and the summary that people read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from nas.data.exclusions import KINDS, Suspect

FORMAT = 1
_WORDS = {
    "corrupt": "files that cannot be used",
    "leak": "copies across splits",
    "duplicate": "copies within a split",
    "mislabel": "likely mislabels",
    "outlier": "outliers",
}
_LISTED = 5


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are copies of each other.

    members: numbers in the audited row of images, what may stay first. origins: their positions in the
      source. files: their files, empty texts where there are none. exact: whether all have the same pixels.
    splits, classes: where they are and what they are labelled; more than one class is a contradiction.
    """

    members: tuple[int, ...]
    origins: tuple[int, ...]
    files: tuple[str, ...]
    exact: bool
    splits: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of one class that probably are of another; count is an estimate."""

    given: str
    suggested: str
    count: int


@dataclass(frozen=True, slots=True)
class LabelErrors:
    """How far labels can be trusted.

    noise, low, high: estimated share of wrong labels and its 95 % interval; what the predictions get wrong
      counts too, so the truth is rather below. by_class: the share in each class.
    confused: the pairs of classes with most wrong labels, worst first.
    accuracy: of the cross-validated predictions against the given labels.
    judged: images that could be judged. reason: why others, or all, could not be; empty if all were.
    """

    noise: float = 0.0
    low: float = 0.0
    high: float = 0.0
    by_class: Mapping[str, float] | None = None
    confused: tuple[Confusion, ...] = ()
    accuracy: float = 0.0
    judged: int = 0
    reason: str = ""


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
    backend: str
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
        return {"format": FORMAT, **plain}

    def summary(self) -> list[str]:
        """The findings in a few lines."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        sizes = ", ".join(f"{sum(part.values()):,} {name}" for name, part in self.counts.items())
        classes = len(next(iter(self.counts.values())))
        yield f"{'images':<30} {sizes}; {classes} classes, largest to smallest {self.imbalance:.1f}"
        for kind in KINDS:
            found = self.of_kind(kind)
            yield f"{_WORDS[kind]:<30} {len(found):,}{self._detail(kind)}"
        if self.labels.judged:
            noise = f"{self.labels.noise:.1%} (95 % interval {self.labels.low:.1%} to {self.labels.high:.1%})"
            yield f"{'share of wrong labels':<30} at most about {noise}"
        for pair in self.labels.confused[:_LISTED]:
            yield f"{'':<30} {pair.count} of {pair.given} look like {pair.suggested}"
        for remark in (*self.remarks, *([self.labels.reason] if self.labels.reason else [])):
            yield f"note: {remark}"

    def _detail(self, kind: str) -> str:
        if kind in ("leak", "duplicate"):
            across = [group for group in self.groups if (len(group.splits) > 1) == (kind == "leak")]
            contrary = sum(len(group.classes) > 1 for group in across)
            exact = sum(group.exact for group in across)
            told = f" in {len(across)} groups, {exact} of them exact" if across else ""
            return told + (f", {contrary} with contradictory labels" if contrary else "")
        return _first(self.of_kind(kind)) if kind == "corrupt" else ""


def _first(found: Sequence[Suspect]) -> str:
    return "".join(f"\n{'':<30} {suspect.file}: {suspect.reason}" for suspect in found[:_LISTED])
