"""A run as TensorBoard event files: one event for a point, so that a killed run leaves whole points only."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nas.show.tracking.tracker import Key, Point, Status, TrackedRun

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import FileWriter

SETTINGS, PICTURES = "settings", "pictures"


class TensorBoard:
    """Writes the event files of a run into a folder of its own.

    folder: in which each run has a folder of its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _writer(self) -> FileWriter:
        """Made when there is something new to write, into a file beside those that are there."""
        from torch.utils.tensorboard import FileWriter

        return FileWriter(str(self._place))

    def begin(self, run: TrackedRun) -> AbstractSet[Key]:
        """Reads what the run has left before."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._place = self.folder / run.name
        self._known = keys(self._place)
        if SETTINGS not in (series for series, _ in self._known):
            lines = ["| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in run.settings.items())]
            self._writer.add_summary(text_pb(f"{SETTINGS}/asked", "\n".join(lines)))
        return self._known

    def track(self, points: Sequence[Point]) -> None:
        """Writes one event for each point."""
        for point in points:
            self._writer.add_summary(_summary(point), point.step)
        self._writer.flush()

    def keep(self, folder: Path, files: Sequence[str]) -> None:
        """Shows the pictures; the other files stay where they are."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if PICTURES not in (series for series, _ in self._known):
            for name in files:
                if name.endswith(".png"):
                    png = (folder / name).read_bytes()
                    width, height = struct.unpack(">II", png[16:24])  # of its header
                    image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
                    tag = f"{PICTURES}/{Path(name).stem}"
                    self._writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]))

    def end(self, status: Status) -> None:  # noqa: ARG002 - event files know no status
        """Closes the file."""
        if "_writer" in vars(self):
            self._writer.close()


def keys(place: Path) -> set[Key]:
    """The points in the event files of a folder; what a kill has left half of is passed over."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: set[Key] = set()
    for path in sorted(place.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            tags = [value.tag for value in event.summary.value]
            found |= {(tag.rpartition("/")[0], event.step) for tag in tags[:1]}
    return found


def _summary(point: Point) -> Summary:
    """The numbers first, as `series/name`; then a histogram for each decision's alphas."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.histogram.summary_v2 import histogram_pb

    numbers = [Summary.Value(tag=f"{point.series}/{k}", simple_value=v) for k, v in point.values.items()]
    alphas = [histogram_pb(f"alphas/{decision}", row).value[0] for decision, row in point.alphas.items()]
    return Summary(value=[*numbers, *alphas])
