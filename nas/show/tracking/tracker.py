"""What a tracker is, the points it is given, and how they are handed over so that a job never waits."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
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
WAITING = 10_000
"""Hand-overs that may wait for a tracker before it is given up."""
BATCH = 100
"""Hand-overs that a tracker is given at once, at most."""
PATIENCE_S = 15.0
"""How long the end of a job waits for what a tracker still has to do."""


class Epoch(Protocol):
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


class Feed:
    """Hands one tracker, in a thread of its own, what it has not got yet.

    name: what the tracker is called in messages. failure: why it was given up, None while it works.
    """

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun) -> None:
        self.name, self._run = name, run
        self.failure: str | None = None
        self._tracker = tracker
        self._queue: queue.Queue[Sequence[Point] | _End] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, item: Sequence[Point] | _End) -> None:
        """Hands over points, or the end."""
        if self.failure is None:
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                self.failure = f"it is too slow: {WAITING:,} points wait for it"

    def join(self, patience_s: float) -> None:
        """Waits a while for what is still to be done."""
        self._thread.join(patience_s if self.failure is None else 0.0)
        if self._thread.is_alive() and self.failure is None:
            self.failure = f"it did not finish within {patience_s:.0f} s"

    def _work(self) -> None:
        try:
            known, end = set(self._tracker.begin(self._run)), None
            while end is None and self.failure is None:
                items = self._waiting()
                self._track([p for item in items if not isinstance(item, _End) for p in item], known)
                end = items[-1] if isinstance(items[-1], _End) else None
            if end is None:
                return
            if end.final and end.final[0].key not in known:
                self._tracker.keep(end.folder, end.files)
                self._track(end.final, known)
            self._tracker.end(end.status)
        except FAULTS as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.failure = printable(lines[0], limit=300)

    def _waiting(self) -> list[Sequence[Point] | _End]:
        """What waits, or what comes next; the end is the last of all."""
        items = [self._queue.get()]
        with suppress(queue.Empty):
            while len(items) < BATCH:
                items.append(self._queue.get_nowait())
        return items

    def _track(self, points: Sequence[Point], known: set[Key]) -> None:
        new = {point.key: point for point in points if point.key not in known}
        if new:
            self._tracker.track(list(new.values()))
            known.update(new)


class Tracking:
    """Hands every point to every tracker. A job may tell the same point again: it is kept once.

    A resumed job therefore tells all it has, and trackers that were away get what they missed.

    note: hears why a tracker was given up.
    """

    def __init__(
        self,
        feeds: Sequence[Feed] = (),
        *,
        note: Callable[[str], None] = lambda _: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._feeds, self._note, self._patience_s = feeds, note, patience_s
        self._given_up: set[Feed] = set()
        self._end = _End()

    def tell(self, points: Iterable[Point]) -> None:
        """Tells of points; returns at once."""
        gathered = list(points) if self._feeds else []
        for feed in self._feeds:
            feed.put(gathered)
        self._warn()

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
        status: Status = "finished" if error is None else "stopped" if paused else "failed"
        for feed in self._feeds:
            feed.put(replace(self._end, status=status))
        for feed in self._feeds:
            feed.join(self._patience_s)
        self._warn()

    def _warn(self) -> None:
        for feed in self._feeds:
            if feed.failure is not None and feed not in self._given_up:
                self._given_up.add(feed)
                self._note(
                    f"WARNING: {feed.name} is told no more: {feed.failure}; the job goes on, and what is "
                    "missing there is told when the run is resumed"
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


def of_epochs(series: str, epochs: Iterable[Epoch]) -> Iterator[Point]:
    """One point for each epoch of a training, at its number."""
    for epoch in epochs:
        yield Point(series, epoch.epoch, finite(epoch.metrics))


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Those values that a chart can show."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
