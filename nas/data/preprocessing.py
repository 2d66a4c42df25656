"""What a trained network expects of an image, small enough to be written down beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.data.arrays import Array, image_tensor, images_as_numpy
from nas.data.task import Task
from nas.errors import DataError
from nas.text import shown


@dataclass(frozen=True)
class Inputs:
    """How raw images become a network's input, and what its outputs are called.

    image_shape: (C, H, W). mean, std: [C], of pixels in [0, 1] where images are uint8. pixels: of what type
      the images were that it was trained on, `uint8` or `float32`; None where that is not known.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: str | None = None

    @classmethod
    def of(cls, task: Task) -> Inputs:
        """Those of a task."""
        mean, std = tuple(task.mean.tolist()), tuple(task.std.tolist())
        return cls(task.classes, task.image_shape, mean, std, str(task.train.x.dtype).removeprefix("torch."))

    @classmethod
    def of_record(cls, task: Mapping[str, Any]) -> Inputs:
        """Those written down in a run.json."""
        told = {name: tuple(task[name]) for name in ("classes", "image_shape", "mean", "std")}
        return cls(**told, pixels=task.get("pixels"))

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
        self._check_scale(raw)
        pixels = raw.float() / 255 if raw.dtype == torch.uint8 else raw.float()
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _check_scale(self, raw: Tensor) -> None:
        if self.pixels == "float32" and raw.dtype == torch.uint8:
            raise DataError(
                "predict: images are integers, but the network was trained on floats; "
                "give floats of that scale"
            )
        low, high = float(raw.min()), float(raw.max()) + 0.0  # no -0
        if self.pixels == "uint8" and raw.dtype != torch.uint8 and (low < 0 or high > 1):
            raise DataError(
                f"predict: images are floats from {low:g} to {high:g}, but the network was trained on bytes; "
                "give those, or floats from 0 to 1"
            )
