"""What a tracker is: the one Protocol, the points it is given, and how its failures are told apart."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nas.errors import FAULTS, NasError, Stopped
from nas.files.manifest import MANIFEST, read_manifest
from nas.text import printable
from nas.training.train import Curve, EpochReport
from nas.types import Trial

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


def of_trials(series: str, trials: Iterable[Trial]) -> Iterator[Point]:
    """One point for each ended trial, at its number: metrics, epochs, seconds, whether it failed."""
    for trial in trials:
        if trial.state != "running":
            failed = float(trial.state == "failed")
            values = {"epochs": float(trial.fidelity), "seconds": trial.cost_s, "failed": failed}
            yield Point(series, trial.number, finite({**values, **trial.metrics}))


def of_report(series: str, report: EpochReport) -> Point:
    """One epoch of a training."""
    values = {"train_loss": report.train_loss, "lr": report.lr, "seconds": report.seconds}
    if report.val_loss is not None and report.val_acc is not None:
        values |= {"val_loss": report.val_loss, "val_acc": report.val_acc}
    return Point(series, report.epoch, finite(values))


def of_curve(series: str, curve: Curve) -> Iterator[Point]:
    """Every epoch of a training."""
    evaluated = {e: pair for e, *pair in zip(curve.val_epochs, curve.val_loss, curve.val_acc, strict=True)}
    epochs = len(curve.train_loss)
    rows = zip(curve.train_loss, curve.lr, curve.seconds, strict=True)
    for epoch, (loss, lr, seconds) in enumerate(rows, start=1):
        yield of_report(series, EpochReport(epoch, epochs, loss, lr, seconds, *evaluated.get(epoch, ())))


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Those values that a chart can show."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


WAITING = 10_000
"""Hand-overs that may wait for a tracker before it is given up."""
BATCH = 100
"""Hand-overs that a tracker is given at once, at most."""
PATIENCE_S = 15.0
"""How long the end of a job waits for what a tracker still has to do."""


@dataclass(frozen=True)
class _Files:
    folder: Path
    names: Sequence[str]


@dataclass(frozen=True)
class _End:
    status: Status


class Feed:
    """Hands one tracker what it has not got yet.

    name: what the tracker is called in messages. failure: why it was given up, None while it works.
    """

    def __init__(self, name: str, tracker: Tracker, run: Run) -> None:
        self.name, self.failure = name, None
        self._tracker, self._run = tracker, run
        self._queue: queue.Queue[Sequence[Point] | _Files | _End] = queue.Queue(WAITING)
        self._known: set[Key] = set()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    failure: str | None

    def put(self, points: Sequence[Point]) -> None:
        """Hands over points; those that the tracker has are left out."""
        self._put(points)

    def keep(self, folder: Path, names: Sequence[str]) -> None:
        """Hands over the files of a finished run, which a tracker that has its final point does not want."""
        self._put(_Files(folder, names))

    def close(self, status: Status, *, patience_s: float = PATIENCE_S) -> None:
        """Waits a while for what is still to be done."""
        self._put(_End(status))
        self._thread.join(patience_s if self.failure is None else 0.0)
        if self._thread.is_alive() and self.failure is None:
            self.failure = f"it did not finish within {patience_s:.0f} s"

    def _put(self, item: Sequence[Point] | _Files | _End) -> None:
        if self.failure is not None:
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.failure = f"it is too slow: {WAITING:,} points wait for it"

    def _work(self) -> None:
        try:
            with tracker_errors():
                self._known |= self._tracker.begin(self._run)
                while self.failure is None and not self._step():
                    pass
        except TrackingError as error:
            self.failure = str(error)

    def _step(self) -> bool:
        """Does what waits; true at the end."""
        points: list[Point] = []
        for item in self._waiting():
            match item:
                case _Files():
                    self._track(points)
                    points = []
                    if (FINAL, 0) not in self._known:
                        self._tracker.keep(item.folder, item.names)
                case _End():
                    self._track(points)
                    self._tracker.end(item.status)
                    return True
                case _:
                    points.extend(item)
        self._track(points)
        return False

    def _waiting(self) -> list[Sequence[Point] | _Files | _End]:
        items = [self._queue.get()]
        while len(items) < BATCH:
            try:
                items.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return items

    def _track(self, points: Sequence[Point]) -> None:
        new = {point.key: point for point in points if point.key not in self._known}
        if new:
            self._tracker.track(list(new.values()))
            self._known |= new.keys()


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

    def tell(self, points: Iterable[Point]) -> None:
        """Tells of points; returns at once."""
        if self._feeds:
            gathered = list(points)
            for feed in self._feeds:
                feed.put(gathered)
            self._warn()

    def finish(self, metrics: Mapping[str, float], folder: Path) -> None:
        """Tells of the files of a finished run and, last, of its final metrics."""
        if self._feeds:
            names = sorted(read_manifest(folder))
            for feed in self._feeds:
                feed.keep(folder, [*names, MANIFEST])
        self.tell([Point(FINAL, 0, metrics)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        paused = isinstance(error, Stopped | KeyboardInterrupt)
        status: Status = "finished" if error is None else "stopped" if paused else "failed"
        for feed in self._feeds:
            feed.close(status, patience_s=self._patience_s)
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
