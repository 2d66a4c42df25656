"""A tracker and the thread it works in, so that no job ever waits for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.show.tracking.tracker import FINAL, Key, Point, Run, Status, Tracker, TrackingError, tracker_errors

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
