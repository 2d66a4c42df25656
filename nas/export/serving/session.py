"""A run's model.onnx in onnxruntime."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nas.data.image_io import FORMATS, MOST_PIXELS, fitted
from nas.data.safe_npz import NPY, array_of
from nas.errors import ConfigError, DataError
from nas.files.atomic import read_json
from nas.files.manifest import MANIFEST, require_intact
from nas.files.paths import check_contents, is_file
from nas.files.schemas import RunRecord, checked
from nas.text import printable

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


MODEL = "model.onnx"
BATCH = 32


class Session:
    """Runs a model on the CPU; may be called from several threads at once.

    Raises:
        ConfigError: when the run has no model.onnx, or it is damaged or another run's.
    """

    def __init__(self, folder: Path, served: Served) -> None:
        if not is_file(folder / MODEL):
            raise ConfigError(
                f"{folder} has no {MODEL}; write it by: pip install 'nas-engine[onnx]' && nas export {folder}"
            )
        require_intact(folder, MODEL, "run.json")
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                folder / MODEL, options, providers=["CPUExecutionProvider"]
            )
        except (states.Fail, states.InvalidProtobuf, states.InvalidGraph, states.NotImplemented) as error:
            raise ConfigError(
                f"{folder / MODEL} cannot be loaded: {printable(str(error), limit=300)}; export it again"
            ) from error
        inputs = [(i.name, tuple(i.shape[1:])) for i in self._session.get_inputs()]
        classes = [tuple(o.shape[1:]) for o in self._session.get_outputs()]
        if inputs != [("pixels", served.image_shape)] or classes != [(len(served.classes),)]:
            raise ConfigError(
                f"{folder / MODEL} takes {inputs} and answers {classes}, but the run is of images "
                f"{served.image_shape} and {len(served.classes)} classes; export it again"
            )

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `[N, classes]` of images `[N, C, H, W]`."""
        parts = [
            self._session.run(["logits"], {"pixels": np.ascontiguousarray(pixels[start : start + BATCH])})[0]
            for start in range(0, len(pixels), BATCH)
        ]
        return np.concatenate(parts)


Pixels = NDArray[np.float32]
_BYTE = np.float32(255)


def pixels_of(name: str, data: bytes, served: Served) -> Pixels:
    """The images of a file as float32 `[N, C, H, W]`, as the exported forms take them.

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
        return fitted(data, served.image_shape)[None].astype(np.float32) / _BYTE
    except ValueError as error:
        raise DataError(
            f"{what} cannot be read as an image: {printable(str(error), limit=200)}; wanted a whole "
            f"{', '.join(FORMATS)} file or an .npy array"
        ) from error


def array_pixels(name: str, array: NDArray[np.generic], served: Served) -> Pixels:
    """Images of the model's size as float32 `[N, C, H, W]`.

    array: one image or several, `[H, W]`, `[H, W, C]`, `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`; bytes,
      or floats of the scale that the training images had.

    Raises:
        DataError: when the shape, the type or the range is another.
    """
    channels, height, width = served.image_shape
    shape, wanted = array.shape, (height, width, channels)
    if channels == 1 and shape in ((height, width), (shape[0] if shape else 0, height, width)):
        images = array.reshape(-1, 1, height, width)
    elif shape == wanted or (len(shape) == 4 and shape[1:] == wanted):
        images = array.reshape(-1, *wanted).transpose(0, 3, 1, 2)
    elif len(shape) == 4 and shape[1:] == served.image_shape:
        images = array
    else:
        several = f"[N, {height}, {width}]" if channels == 1 else f"[N, {height}, {width}, {channels}]"
        raise DataError(f"{name} has shape {list(shape)}, wanted {several} or one image of that size")
    if not len(images):
        raise DataError(f"{name} holds no image: its shape is {list(shape)}")
    return _scaled(name, images, served)


def _scaled(name: str, images: NDArray[np.generic], served: Served) -> Pixels:
    kind = images.dtype.kind
    if kind not in "iuf":
        raise DataError(f"{name} has type {images.dtype}, wanted bytes or floats")
    low, high = float(images.min()), float(images.max())
    if not abs(low) + abs(high) < float(np.finfo(np.float32).max):
        raise DataError(f"{name} holds NaN or infinite pixels; repair or remove these images")
    if served.pixels == "float32":
        if kind != "f":
            raise DataError(f"{name} has type {images.dtype}, wanted floats of the training images' scale")
        return images.astype(np.float32)
    most = 1 if kind == "f" else 255
    if low < 0 or high > most:
        wanted = "floats from 0 to 1" if kind == "f" else "integers from 0 to 255"
        raise DataError(f"{name} has pixels from {low:g} to {high:g}, wanted {wanted}")
    pixels = images.astype(np.float32)
    return pixels if kind == "f" else pixels / _BYTE


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
        return {
            "name": self.name,
            "class": first,
            "probability": probability,
            "top": [{"class": name, "probability": p} for name, p in self.top],
        }

    def __str__(self) -> str:
        return f"{self.name}: " + ", ".join(f"{name} {p:.1%}" for name, p in self.top)


def answers(
    names: Sequence[str], logits: NDArray[np.float32], classes: Sequence[str], *, top: int
) -> list[Answer]:
    """One answer for each row of `logits` [N, classes]; `top` is at least 1.

    Raises:
        ConfigError: when the model has another number of classes.
        DataError: when a logit is not finite.
    """
    found = []
    if logits.shape[1:] != (len(classes),):
        raise ConfigError(
            f"the model answers {list(logits.shape)} numbers, but its run names {len(classes)} classes; "
            "restore the run's folder from a copy"
        )
    if not np.isfinite(logits).all():
        raise DataError(
            f"{names[0]}: the model's answer is not finite; its pixels are far from those of the training"
        )
    for name, row in zip(names, probabilities(logits), strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        found.append(Answer(name, tuple((classes[i], float(f"{row[i]:.6f}")) for i in best)))
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


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax of each row."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    exponentials = np.exp(shifted)
    shares: NDArray[np.float64] = exponentials / exponentials.sum(1, keepdims=True)
    return shares


def numbered(name: str, count: int) -> list[str]:
    """Names of the images of one file: its own, or with their place where it holds several."""
    return [name] if count == 1 else [f"{name}[{i}]" for i in range(count)]


def refused(name: str, reason: str) -> Mapping[str, str]:
    """What is said of a file that cannot be answered, as JSON."""
    return {"name": name, "error": reason}
