"""What a found model takes and answers: images from files, classes with probabilities; without torch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from nas.data.decode import FORMATS, MOST_PIXELS, NPY, SUFFIXES, array_of, fitted, load_arrays, read_bounded
from nas.errors import ConfigError, DataError, printable
from nas.files.folder import MANIFEST, is_file, is_folder
from nas.results.run_record import read_run

Pixels = NDArray[np.float32]
"""Images `[N, C, H, W]` as the exported forms take them."""
Model = Callable[[Pixels], NDArray[np.float32]]
"""Images to logits `[N, classes]`."""
BATCH = 256
"""Files whose images are run together."""
MOST_BYTES = 256 << 20
"""Of one image file or array."""
ARRAYS = ("images", "x", "x_test")
"""Names of the array of images in an .npz file."""


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
    record = read_run(folder)
    task = record["task"]
    channels, height, width = task["image_shape"]
    if height * width > MOST_PIXELS:
        raise ConfigError(
            f"{folder}: its images have {width}x{height} pixels, but at most {MOST_PIXELS:,} are read"
        )
    if not task["classes"]:
        raise ConfigError(f"{folder}: its model names no classes, which are what is answered; use model.py")
    title = f"{record['space'].get('name')} on {task['name']}"
    return Served(title, tuple(task["classes"]), (channels, height, width), task.get("pixels", "uint8"))


# -- images ---------------------------------------------------------------------------------------------


def pixels_of(name: str, data: bytes, served: Served) -> Pixels:
    """The images of a file.

    data: an image, or an .npy array as `array_pixels` takes it.

    Raises:
        DataError: saying what is wrong with which file, and what was wanted.
    """
    what = printable(name, limit=100)
    if not data:
        raise DataError(f"{what} is empty; wanted an image ({', '.join(FORMATS)}) or an .npy array")
    if data.startswith(NPY):
        try:
            array = array_of(data)
        except ValueError as error:
            raise DataError(f"{what} is no whole .npy array: {error}") from error
        return array_pixels(what, array, served)
    if not served.takes_files:
        raise DataError(f"{what}: this model takes {served.steps}; send an .npy array")
    try:
        return fitted(data, served.image_shape)[None].astype(np.float32) / np.float32(255)
    except ValueError as error:
        raise DataError(
            f"{what} cannot be read as an image: {printable(str(error), limit=200)}; wanted a whole "
            f"{', '.join(FORMATS)} file or an .npy array"
        ) from error


def array_pixels(name: str, array: NDArray[np.generic], served: Served) -> Pixels:
    """Images of the model's size.

    array: one image or several, `[H, W]`, `[H, W, C]`, `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`; bytes,
      or floats of the scale that the training images had.

    Raises:
        DataError: when the shape, the type or the range is another.
    """
    channels, height, width = served.image_shape
    shape, wanted = array.shape, (height, width, channels)
    if channels == 1 and shape[-2:] == (height, width) and len(shape) in (2, 3):
        images = array.reshape(-1, 1, height, width)
    elif shape == wanted or (len(shape) == 4 and shape[1:] == wanted):
        images = array.reshape(-1, *wanted).transpose(0, 3, 1, 2)
    elif len(shape) == 4 and shape[1:] == served.image_shape:
        images = array
    else:
        several = f"[N, {height}, {width}]" if channels == 1 else f"[N, {height}, {width}, {channels}]"
        raise DataError(f"{name} has shape {list(shape)}, wanted {several} or one image of that size")
    kind, of_floats = images.dtype.kind, served.pixels == "float32"
    if kind not in ("f" if of_floats else "iuf"):
        wants = "floats of the training images' scale" if of_floats else "bytes or floats"
        raise DataError(f"{name} has type {images.dtype}, wanted {wants}")
    if not len(images):
        raise DataError(f"{name} holds no image: its shape is {list(shape)}")
    low, high = float(images.min()), float(images.max())
    if not abs(low) + abs(high) < float(np.finfo(np.float32).max):
        raise DataError(f"{name} holds NaN or infinite pixels; repair or remove these images")
    if not of_floats and (low < 0 or high > (1 if kind == "f" else 255)):
        wants = "floats from 0 to 1" if kind == "f" else "integers from 0 to 255"
        raise DataError(f"{name} has pixels from {low:g} to {high:g}, wanted {wants}")
    pixels = images.astype(np.float32)
    return pixels if kind == "f" else pixels / np.float32(255)


# -- answers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a model says of one image.

    top: names of classes with their probabilities in [0, 1], the likeliest first.
    """

    name: str
    top: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        first, probability = self.top[0]
        top = [{"class": name, "probability": p} for name, p in self.top]
        return {"name": self.name, "class": first, "probability": probability, "top": top}

    def __str__(self) -> str:
        return f"{self.name}: " + ", ".join(f"{name} {p:.1%}" for name, p in self.top)


def answers(name: str, logits: NDArray[np.float32], classes: Sequence[str], *, top: int) -> list[Answer]:
    """One answer for each row of `logits` [N, classes]; `top` is at least 1.

    name: of the file that the images are from; where it holds several, their place is added.

    Raises:
        ConfigError: when the model has another number of classes.
        DataError: when a logit is not finite.
    """
    if logits.shape[1:] != (len(classes),):
        raise ConfigError(
            f"the model answers {list(logits.shape)} numbers, but its run names {len(classes)} classes; "
            "restore the run's folder from a copy"
        )
    if not np.isfinite(logits).all():
        raise DataError(
            f"{name}: the model's answer is not finite; its pixels are far from those of the training"
        )
    found = []
    for place, row in enumerate(softmax(logits.astype(np.float64), axis=1)):
        best = np.argsort(-row, kind="stable")[:top]
        own = name if len(logits) == 1 else f"{name}[{place}]"
        found.append(Answer(own, tuple((classes[i], float(f"{row[i]:.6f}")) for i in best)))
    return found


def as_csv(found: Sequence[Answer]) -> str:
    """The answers as lines of a CSV file: name, class, probability, then class_2, probability_2 and so on."""
    most = max((len(answer.top) for answer in found), default=1)
    ends = ["", *(f"_{place}" for place in range(2, most + 1))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *(f"{column}{end}" for end in ends for column in ("class", "probability"))])
    for answer in found:
        cells = (cell for name, probability in answer.top for cell in (printable(name), f"{probability:.6f}"))
        writer.writerow([printable(answer.name), *cells])
    return text.getvalue()


def answer_files(
    model: Model, served: Served, files: Sequence[str], npz: Path | None = None, *, top: int
) -> tuple[list[Answer], list[str]]:
    """Answers for all images that can be read, and what is wrong with the others.

    files: image files, .npy arrays, or folders of them, see `_files_of`. npz: a file with one of `ARRAYS`.
    """
    found, troubles = list[Answer](), list[str]()
    images = _images(files, npz, served, troubles)
    while group := list(islice(images, BATCH)):
        logits = model(np.concatenate([pixels for _, pixels in group]))
        ends = np.cumsum([len(pixels) for _, pixels in group])
        for (name, _), rows in zip(group, np.split(logits, ends[:-1]), strict=True):
            try:
                found += answers(name, rows, served.classes, top=top)
            except DataError as error:
                troubles.append(str(error))
    return found, troubles


def _images(
    files: Sequence[str], npz: Path | None, served: Served, troubles: list[str]
) -> Iterator[tuple[str, Pixels]]:
    """The images of each file, one after the other; what is wrong with the others is put into `troubles`."""
    names = ((name, _read) for given in files for name in _files_of(given, troubles))
    for name, read in chain(names, [] if npz is None else [(str(npz), _read_npz)]):
        try:
            yield name, read(name, served)
        except DataError as error:
            troubles.append(str(error))


def _files_of(given: str, troubles: list[str]) -> list[str]:
    """The file itself, or the images and .npy arrays in a folder and those within, in sorted order.

    Names that begin with a dot are passed over; what cannot be looked into is named in `troubles`.
    """
    if not is_folder(Path(given)):
        return [given]
    kinds, images, before = SUFFIXES | {".npy"}, list[str](), len(troubles)
    walk = os.walk(given, onerror=lambda e: troubles.append(f"{e.filename} cannot be read: {e.strerror}"))
    for place, inside, names in walk:
        inside[:] = (name for name in inside if not name.startswith("."))
        shown = (name for name in names if not name.startswith("."))
        images += [str(Path(place, name)) for name in shown if Path(name).suffix.lower() in kinds]
    if not images and len(troubles) == before:
        troubles.append(f"{given} has no images in it; wanted files that end in {', '.join(sorted(kinds))}")
    return sorted(images, key=Path)


def _read(name: str, served: Served) -> Pixels:
    if not is_file(Path(name)):
        raise DataError(f"{name} is no file; wanted an image or an .npy array")
    try:
        data = read_bounded(Path(name), max_bytes=MOST_BYTES)
    except ValueError as error:
        raise DataError(f"{name} cannot be read: {error}") from error
    if served.takes_files and not data.startswith(NPY) and find_spec("PIL") is None:
        raise ConfigError("predict: image files need Pillow; pip install 'nas-engine[vision]', or give --npz")
    return pixels_of(name, data, served)


def _read_npz(path: str, served: Served) -> Pixels:
    try:
        arrays, names = load_arrays(Path(path), ARRAYS)
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read: {error}; write it with np.savez(path, images=...)"
        ) from error
    if not arrays:
        raise DataError(
            f"{path} holds {', '.join(names) or 'nothing'}, wanted an array {' or '.join(ARRAYS)}"
        )
    name = next(name for name in ARRAYS if name in arrays)
    return array_pixels(f"{path} ({name})", arrays[name], served)
