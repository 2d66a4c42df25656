"""What a tracker is: the one Protocol, the points it is given, and how its failures are told apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.errors import FAULTS, NasError
from nas.text import printable

FINAL = "final"
"""The series of the single point that a finished run ends with, at step 0."""
Status = Literal["finished", "stopped", "failed"]
Key = tuple[str, int]
"""The series and step of a point; a run has no two points of the same key."""


class TrackingError(NasError):
    """A tracker cannot do its work; the job goes on without it."""


@dataclass(frozen=True, eq=False)
class Point:
    """What was measured at one step of a series.

    series: e.g. `search`, `rerank` or `retrain`. step: the number of a trial, or of an epoch counted from 1.
    values: finite numbers by name. alphas: `[O]` how much each option is preferred, by decision, in [0, 1].
    options: the names of these options.
    """

    series: str
    step: int
    values: Mapping[str, float]
    alphas: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What a tracker must not be given twice."""
        return self.series, self.step


@dataclass(frozen=True)
class Run:
    """What is tracked.

    name: other than that of any other run. folder: where it lives. settings: what was asked, as text.
    """

    name: str
    folder: Path
    settings: Mapping[str, str]


class Tracker(Protocol):
    """Keeps the points of one run. It is called from one thread, which may wait for as long as it likes.

    Whatever it raises ends the tracking, never the job.
    """

    def begin(self, run: Run) -> AbstractSet[Key]:
        """Begins or goes on with a run; returns the keys of the points that it has of it already."""

    def track(self, points: Sequence[Point]) -> None:
        """Keeps points, none of which it was given before."""

    def keep(self, folder: Path, files: Sequence[str]) -> None:
        """Keeps files of a finished run, named by their paths below its folder."""

    def end(self, status: Status) -> None:
        """Comes to an end, until the run is resumed."""


@contextmanager
def tracker_errors() -> Iterator[None]:
    """Raises TrackingError, in one line, for whatever a tracker raises."""
    try:
        yield
    except FAULTS as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise TrackingError(printable(lines[0], limit=300)) from error
