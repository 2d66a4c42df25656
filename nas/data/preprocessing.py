"""What a trained network expects of an image, small enough to be written down beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.data.arrays import Array, as_numpy, image_tensor, images_as_numpy
from nas.data.problem import CLASSIFICATION, Problem
from nas.data.task import Task, as_float
from nas.errors import ConfigError, DataError, shown


@dataclass(frozen=True)
class Inputs:
    """How raw images become a network's input, and what its outputs say.

    problem: that of the task.
    image_shape: (C, H, W). mean, std: [C], of pixels in [0, 1] where images are uint8. pixels: of what type
      the images were that it was trained on, `uint8` or `float32`; None where that is not known.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: str | None = None
    problem: Problem = CLASSIFICATION

    @classmethod
    def of(cls, task: Task) -> Inputs:
        """Those of a task."""
        mean, std = tuple(task.mean.tolist()), tuple(task.std.tolist())
        pixels = str(task.train.x.dtype).removeprefix("torch.")
        return cls(task.classes, task.image_shape, mean, std, pixels, task.problem)

    @classmethod
    def of_record(cls, task: Mapping[str, Any], problem: Problem = CLASSIFICATION) -> Inputs:
        """Those written down in a run.json. problem: of its task.

        Raises:
            ConfigError: when it had another problem.
        """
        if (name := task.get("problem", CLASSIFICATION.name)) != problem.name:
            raise ConfigError(f"the run is for problem {shown(name)}, not {problem.name!r}; give its own")
        told = {name: tuple(task[name]) for name in ("classes", "image_shape", "mean", "std")}
        return cls(**told, pixels=task.get("pixels"), problem=problem)

    def prepare(self, images: Array | Tensor | Sequence[Any]) -> Tensor:
        """Raw images as `task_from_arrays` takes them, normalised: float32 `[N, C, H, W]`.

        Raises:
            DataError: when they have another shape or scale than those that the network was trained on.
        """
        if isinstance(images, str | Path):
            raise DataError(
                f"predict: got {shown(str(images))}, wanted an array of images; nas predict reads files"
            )
        raw = torch.from_numpy(image_tensor(images_as_numpy(images, who="predict"), who="predict"))
        if tuple(raw.shape[1:]) != self.image_shape:
            raise DataError(
                f"predict: images are {tuple(raw.shape[1:])}, wanted {self.image_shape} (C, H, W)"
            )
        pixels = as_float(raw)
        if self.pixels == "float32" and raw.dtype == torch.uint8:
            raise DataError("predict: images are integers, wanted floats of the scale of the training images")
        if self.pixels == "uint8" and (pixels.min() < 0 or pixels.max() > 1):
            raise DataError(
                f"predict: images are floats from {float(raw.min()):g} to {float(raw.max()):g}, but the "
                "network was trained on bytes; give those, or floats from 0 to 1"
            )
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


Images = NDArray[Any]
"""`[n, H, W, C]`."""
CHANNELS = 4
"""The most that an image has; a longer axis is one of space."""
LEAST_SIDE = 8
"""Of an image whose pixels come as a row, so that spaces can halve it."""
_WANTED = (
    "[n, H, W], [n, H, W, C] or [n, C, H, W], or rows of the pixels of square ones of at least "
    f"{LEAST_SIDE}x{LEAST_SIDE}; for tables take another estimator, such as scikit-learn's "
    "HistGradientBoostingClassifier"
)


@dataclass(frozen=True)
class PixelLayout:
    """What a row of pixels is as an image: one of `shape` (H, W, C)."""

    shape: tuple[int, int, int]

    def shaped(self, rows: Images) -> Images:
        """Rows `[n, H * W * C]` as images."""
        return rows.reshape(len(rows), *self.shape)


def rows_of(x: object) -> tuple[object, tuple[int, int, int] | None]:
    """Images as rows `[n, features]`, and the shape (H, W, C) that they had.

    Three axes are `[n, H, W]`. Of four, the last one is that of the channels where it has up to `CHANNELS`,
    else the second one; for a tensor of torch the second one comes first. What has other axes is left as it
    is, and has no shape.

    Raises:
        ValueError: when no axis can be that of the channels, or for a table with named columns.
    """
    if hasattr(x, "columns"):
        what = f"X is a {type(x).__name__}, whose columns are features"
        raise ValueError(f"{what}, wanted images: {_WANTED}; where they are pixels, give X.to_numpy()")
    array = as_numpy(x) if isinstance(x, Tensor | list | tuple) else x
    if not isinstance(array, np.ndarray) or array.ndim not in (3, 4):
        return array, None
    if array.ndim == 3:
        array = array[..., None]
    elif not _last(array.shape, first=isinstance(x, Tensor)):
        array = array.transpose(0, 2, 3, 1)
    _, height, width, channels = array.shape
    return array.reshape(len(array), -1), (height, width, channels)


def _last(shape: tuple[int, ...], *, first: bool) -> bool:
    """Whether the channels come last. first: what is believed where they could come first as well."""
    before, after = shape[1] <= CHANNELS, shape[3] <= CHANNELS
    if not before and not after:
        raise ValueError(
            f"X has shape {shape}, wanted images [n, H, W, C] or [n, C, H, W] of up to {CHANNELS} channels"
        )
    return after and not (first and before)


def layout(shape: tuple[int, int, int] | None, features: int) -> PixelLayout:
    """That of images of a shape, or of rows of pixels, which are square images.

    Raises:
        ValueError: when a row is no such image.
    """
    if shape is not None:
        return PixelLayout(shape)
    side = math.isqrt(features)
    if side * side != features or side < LEAST_SIDE:
        raise ValueError(f"X has rows of {features} features, wanted images: {_WANTED}")
    return PixelLayout((side, side, 1))
