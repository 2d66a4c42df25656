"""What a trained network expects of an image, small enough to be written down beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.data.arrays import Array, image_tensor, images_as_numpy
from nas.errors import DataError
from nas.task import Task


@dataclass(frozen=True)
class Inputs:
    """How raw images become a network's input, and what its outputs are called.

    image_shape: (C, H, W). mean, std: [C], of pixels in [0, 1] where images are uint8.
    """

    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, task: Task) -> Inputs:
        """Those of a task."""
        return cls(task.classes, task.image_shape, tuple(task.mean.tolist()), tuple(task.std.tolist()))

    @classmethod
    def of_record(cls, task: Mapping[str, Any]) -> Inputs:
        """Those written down in a run.json."""
        return cls(*(tuple(task[name]) for name in ("classes", "image_shape", "mean", "std")))

    def prepare(self, images: Array | Tensor | Sequence[Any]) -> Tensor:
        """Raw images as `task_from_arrays` takes them, normalised: float32 `[N, C, H, W]`.

        Raises:
            DataError: when they have another shape than those that the network was trained on.
        """
        raw = torch.from_numpy(image_tensor(images_as_numpy(images, who="predict"), who="predict"))
        if tuple(raw.shape[1:]) != self.image_shape:
            raise DataError(
                f"predict: images are {tuple(raw.shape[1:])}, wanted {self.image_shape} (C, H, W)"
            )
        pixels = raw.float() / 255 if raw.dtype == torch.uint8 else raw.float()
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std
