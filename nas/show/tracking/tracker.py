"""What a tracker is, the points it is given, and how they are handed over so that a job never waits."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nas.errors import FAULTS, Stopped, printable
from nas.files.folder import MANIFEST, read_manifest
from nas.types import Trial

FINAL = "final"
"""The series of the single point that a finished run ends with, at step 0."""
Status = Literal["finished", "stopped", "failed"]
Key = tuple[str, int]
"""The series and step of a point; a run has no two points of the same key."""
PATIENCE_S = 15.0
"""How long the end of a job waits for what a tracker still has to do."""


class TrackedEpoch(Protocol):
    """An epoch of a training, counted from 1, and what was measured in it."""

    @property
    def epoch(self) -> int:
        """Its number."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """By name."""


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
class TrackedRun:
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

    def begin(self, run: TrackedRun) -> AbstractSet[Key]:
        """Begins or goes on with a run; returns the keys of the points that it has of it already."""

    def track(self, points: Sequence[Point]) -> None:
        """Keeps points, none of which it was given before."""

    def keep(self, folder: Path, files: Sequence[str]) -> None:
        """Keeps files of a finished run, named by their paths below its folder."""

    def end(self, status: Status) -> None:
        """Comes to an end, until the run is resumed."""


@dataclass(frozen=True)
class _End:
    """How a run ended; of a finished one its files and, as the very last point, its metrics."""

    status: Status = "stopped"
    folder: Path = Path()
    files: Sequence[str] = ()
    final: Sequence[Point] = ()


class _Feed:
    """Hands one tracker, in a thread of its own, what it has not got yet.

    failure: why it was given up, empty while it works.
    """

    def __init__(self, tracker: Tracker, run: TrackedRun) -> None:
        self.name, self.failure = type(tracker).__name__, ""
        self.queue: queue.SimpleQueue[Sequence[Point] | _End] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, args=(tracker, run), daemon=True)
        self.thread.start()

    def _work(self, tracker: Tracker, run: TrackedRun) -> None:
        try:
            known, end = set(tracker.begin(run)), None
            while end is None:
                points, end = self._waiting()
                new = {point.key: point for point in points if point.key not in known}
                if new:
                    tracker.track(list(new.values()))
                    known.update(new)
            if end.final and end.final[0].key not in known:
                tracker.keep(end.folder, end.files)
                tracker.track(end.final)
            tracker.end(end.status)
        except FAULTS as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.failure = printable(lines[0], limit=300)

    def _waiting(self) -> tuple[list[Point], _End | None]:
        """The points that wait, or those that come next, and the end once it is reached."""
        points: list[Point] = []
        while not points or not self.queue.empty():
            item = self.queue.get()
            if isinstance(item, _End):
                return points, item
            points += item
        return points, None


class Tracking:
    """Hands every point to every tracker. A job may tell the same point again: it is kept once.

    A resumed job therefore tells all it has, and trackers that were away get what they missed.

    note: hears why a tracker was given up.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker] = (),
        run: TrackedRun | None = None,
        *,
        note: Callable[[str], None] = lambda _: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._feeds = [_Feed(tracker, run) for tracker in trackers] if run is not None else []
        self._note, self._patience_s, self._end = note, patience_s, _End()

    def tell(self, points: Iterable[Point]) -> None:
        """Tells of points; returns at once."""
        if self._feeds:
            self._put(list(points))

    def finish(self, metrics: Mapping[str, float], folder: Path) -> None:
        """Says that the run is finished: at the end its files are told of and, last, its final metrics."""
        if self._feeds:
            files = [*sorted(read_manifest(folder)), MANIFEST]
            self._end = _End("finished", folder, files, [Point(FINAL, 0, metrics)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        paused = isinstance(error, Stopped | KeyboardInterrupt)
        self._put(
            replace(self._end, status="finished" if error is None else "stopped" if paused else "failed")
        )
        for feed in self._feeds:
            feed.thread.join(self._patience_s)
            if feed.thread.is_alive():
                feed.failure = f"it did not finish within {self._patience_s:.0f} s"
        self._give_up()

    def _put(self, item: Sequence[Point] | _End) -> None:
        for feed in self._feeds:
            feed.queue.put(item)
        self._give_up()

    def _give_up(self) -> None:
        """Tells no more to those that failed, and says so once."""
        for feed in [feed for feed in self._feeds if feed.failure]:
            self._feeds.remove(feed)
            self._note(
                f"WARNING: {feed.name} is told no more: {feed.failure}; the job goes on, and what is missing "
                "there is told when the run is resumed"
            )


NO_TRACKING = Tracking()
"""Nobody is told."""


def of_trials(series: str, trials: Iterable[Trial]) -> Iterator[Point]:
    """One point for each ended trial, at its number: metrics, epochs, seconds, whether it failed."""
    for trial in trials:
        if trial.state != "running":
            failed = float(trial.state == "failed")
            values = {"epochs": float(trial.fidelity), "seconds": trial.cost_s, "failed": failed}
            yield Point(series, trial.number, finite({**values, **trial.metrics}))


def of_epochs(series: str, epochs: Iterable[TrackedEpoch]) -> Iterator[Point]:
    """One point for each epoch of a training, at its number."""
    for epoch in epochs:
        yield Point(series, epoch.epoch, finite(epoch.metrics))


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Those values that a chart can show."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
