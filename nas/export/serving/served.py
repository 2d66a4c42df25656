"""What those who run a finished run's model must know of it, read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nas.data.image_io import MOST_PIXELS
from nas.errors import ConfigError
from nas.files.atomic import read_json
from nas.files.manifest import MANIFEST
from nas.files.paths import check_contents, is_file
from nas.files.schemas import RunRecord, checked

FORMAT = 1
"""The newest `run.json` that this can read."""


@dataclass(frozen=True)
class Served:
    """A finished run's model from outside.

    title: space and task. image_shape: (C, H, W). pixels: of what kind the images were that it was trained
    on; bytes are divided by 255, floats have a scale that only their author knows.
    """

    title: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    pixels: Literal["uint8", "float32"]

    @property
    def takes_files(self) -> bool:
        """Whether an image file says all that the model must know."""
        return self.pixels == "uint8" and self.image_shape[0] in (1, 3)

    @property
    def steps(self) -> str:
        """What is done with an image file, in words."""
        channels, height, width = self.image_shape
        if self.pixels != "uint8":
            return "no image files: it was trained on floats, whose scale only arrays can have"
        if not self.takes_files:
            return f"no image files: it was trained on {channels} channels, wanted 1 or 3"
        colours = "grey" if channels == 1 else "RGB"
        return (
            f"the first frame, upright as EXIF says, {colours}, stretched to {width}x{height}, divided by "
            "255; the model standardises by the mean and deviation of its training images"
        )


def read_served(folder: Path) -> Served:
    """The model of a finished run's folder.

    Raises:
        ConfigError: when there is none, or its record is damaged or of a newer version.
    """
    if not is_file(folder / MANIFEST) or not is_file(folder / "run.json"):
        raise ConfigError(f"{folder} holds no finished run; repeat its command to finish it")
    check_contents(folder)
    data = read_json(folder / "run.json")
    record = checked(RunRecord, data, folder / "run.json", "record of a run")
    if record.format > FORMAT:
        raise ConfigError(
            f"{folder} was written by a newer version (format {record.format}, this one reads {FORMAT}); "
            "upgrade nas-engine"
        )
    task = record.task
    channels, height, width = task.image_shape
    if height * width > MOST_PIXELS:
        raise ConfigError(
            f"{folder}: its images have {width}x{height} pixels, but at most {MOST_PIXELS:,} are read"
        )
    title = f"{record.space.get('name')} on {task.name}"
    return Served(title, tuple(task.classes), (channels, height, width), task.pixels)
