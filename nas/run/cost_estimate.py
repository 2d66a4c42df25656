"""What a search will cost: its space, its networks, and its phases, timed by a few real steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas.space.genotypes import Size
from nas.text import counted

HOUR_S = 3600.0


@dataclass(frozen=True)
class Range:
    """Of one quantity over a sample of architectures."""

    low: float
    high: float


@dataclass(frozen=True)
class Phase:
    """A phase of the job: what is planned, in words, and the seconds that it is estimated to take."""

    name: str
    planned: str
    seconds: float


@dataclass(frozen=True)
class Preview:
    """What a search will cost.

    decisions, architectures: of the space; `exact` is False where they are estimated.
    sample: how many architectures the ranges are of; timed: of how many of them latency was measured.
    ranges: of params, macs, peak_bytes and latency_ms of the last network.
    memory_bytes: what training needs at least, counted.
    phases: in order. device: in words.
    """

    space: str
    decisions: int
    architectures: int
    exact: bool
    sample: int
    timed: int
    ranges: Mapping[str, Range]
    memory_bytes: int
    phases: Sequence[Phase]
    device: str

    @property
    def seconds(self) -> float:
        """Estimated, of the whole job."""
        return sum(phase.seconds for phase in self.phases)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "seconds": self.seconds}

    def lines(self) -> list[str]:
        """A short table."""
        size = Size(self.architectures, self.exact)
        rows = [f"space        {self.space}: {counted(self.decisions, 'decision')}, {size} architectures"]
        rows += [
            f"{label:<13}{_span(self.ranges[name], unit)}"
            for name, label, unit in _SHOWN
            if name in self.ranges
        ]
        rows.append(
            f"             over {counted(self.sample, 'random architecture')} at final size, latency of "
            f"{self.timed}"
        )
        rows.append(f"memory       training takes {_short(self.memory_bytes)}B at least")
        rows += [
            f"{phase.name:<13}{phase.planned:<44} {time_text(phase.seconds):>9}" for phase in self.phases
        ]
        rows.append(f"{'in all':<13}{'on ' + self.device:<44} {time_text(self.seconds):>9}, from timed steps")
        return rows


SEARCH, BASELINES, RERANK, RETRAIN, FINISH = "search", "baselines", "re-evaluate", "retrain", "write"
_SHOWN = (
    ("params", "parameters", ""),
    ("macs", "MACs", ""),
    ("peak_bytes", "peak memory", "B"),
    ("latency_ms", "latency", " ms"),
)


def _span(found: Range, unit: str) -> str:
    low, high = _short(found.low), _short(found.high)
    return f"{low}{unit}" if low == high else f"{low}{unit} to {high}{unit}"


def _short(value: float) -> str:
    """Three digits and k, M or G."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"


def time_text(seconds: float) -> str:
    """`45 s`, `12 min` or `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:.1f} h"


def comparison(estimated_s: float, took_s: float, *, before_s: float = 0.0) -> str:
    """The estimate beside what it took, both from the beginning of the job.

    before_s: of them, until the preview, which tells only what comes after it.
    """
    off = abs(took_s / estimated_s - 1) if estimated_s else 0.0
    more = "longer" if took_s >= estimated_s else "less"
    before = f" ({time_text(before_s)} of it until the preview)" if before_s >= 1 else ""
    took, estimated = time_text(took_s), time_text(estimated_s)
    return f"the job took {took}{before}, estimated were {estimated}: {off:.0%} {more}"
