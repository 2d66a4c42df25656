"""A run as TensorBoard event files: one event for a point, so that a killed run leaves whole points only."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import IO, TYPE_CHECKING

from nas.show.tracking.tracker import Key, Point, Status, TrackedRun

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

PICTURES: Key = ("pictures", 0)
SETTINGS: Key = ("settings", 0)


class TensorBoard:
    """Writes the event files of a run into a folder of its own.

    folder: in which each run has a folder of its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[bytes] | None = None

    def begin(self, run: TrackedRun) -> AbstractSet[Key]:
        """Reads what the run has left before; what is new goes into a file beside it."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._place = self.folder / run.name
        self._known = keys(self._place)
        if SETTINGS not in self._known:
            lines = ["| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in run.settings.items())]
            self._write([_event(summary=text_pb("settings/asked", "\n".join(lines)))])
        return self._known

    def track(self, points: Sequence[Point]) -> None:
        """Writes one event for each point."""
        self._write([_event(summary=_summary(point), step=point.step) for point in points])

    def keep(self, folder: Path, files: Sequence[str]) -> None:
        """Shows the pictures; the other files stay where they are."""
        pictures = [folder / name for name in files if name.endswith(".png")]
        if pictures and PICTURES not in self._known:
            self._write([_event(summary=_pictures(pictures))])

    def end(self, status: Status) -> None:  # noqa: ARG002 - event files know no status
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, events: Sequence[Event]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._file is None:
            self._place.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
            self._file = (self._place / name).open("xb")
            events = [_event(file_version="brain.Event:2"), *events]
        records = RecordWriter(self._file)
        for event in events:
            records.write(event.SerializeToString())
        self._file.flush()


def keys(place: Path) -> set[Key]:
    """The points in the event files of a folder; what a kill has left half of is passed over."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: set[Key] = set()
    for path in sorted(place.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            tags = [value.tag for value in event.summary.value]
            found |= {(tag.rpartition("/")[0], event.step) for tag in tags[:1]}
    return found


def _event(*, summary: Summary | None = None, step: int = 0, file_version: str | None = None) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, summary=summary, file_version=file_version)


def _summary(point: Point) -> Summary:
    """The numbers first, as `series/name`; then a histogram for each decision's alphas."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.histogram.summary_v2 import histogram_pb

    numbers = [Summary.Value(tag=f"{point.series}/{k}", simple_value=v) for k, v in point.values.items()]
    alphas = [histogram_pb(f"alphas/{decision}", row).value[0] for decision, row in point.alphas.items()]
    return Summary(value=[*numbers, *alphas])


def _pictures(paths: Sequence[Path]) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary

    found = []
    for path in paths:
        png = path.read_bytes()
        width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")  # of its header
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        found.append(Summary.Value(tag=f"{PICTURES[0]}/{path.stem}", image=image))
    return Summary(value=found)
