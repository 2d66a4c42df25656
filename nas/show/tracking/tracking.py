"""What a job tells of itself to its trackers; a tracker that fails is spoken of once and never waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nas.errors import Stopped
from nas.files.manifest import MANIFEST, read_manifest
from nas.show.tracking.tracker import FINAL, PATIENCE_S, Feed, Point, Status


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
