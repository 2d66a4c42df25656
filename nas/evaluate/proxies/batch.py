"""The images that a proxy looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas.data.task import Task
from nas.errors import ConfigError
from nas.seeding import rng


@dataclass(frozen=True, eq=False)
class Batch:
    """Labelled images, as a network in training sees them.

    x: [B, C, H, W] float32 of about zero mean and unit variance, on the network's device; B at least 2.
    y: [B] int64, in 0..num_classes-1.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or len(self.x) < 2 or not self.x.is_floating_point():
            raise ConfigError(
                f"Batch: x is {self.x.dtype} {tuple(self.x.shape)}, wanted float32 [B, C, H, W] with B of at "
                "least 2; normalise the images with Task.normalise"
            )
        if self.y.shape != self.x.shape[:1] or self.y.dtype != torch.int64:
            raise ConfigError(
                f"Batch: y is {self.y.dtype} {tuple(self.y.shape)}, wanted int64 ({len(self.x)},), one class "
                "number for each image"
            )

    def __len__(self) -> int:
        return len(self.y)


def draw_batch(task: Task, images: int = 64, *, seed: int = 0) -> Batch:
    """Draws `images` different training images of `task`, normalised and not augmented."""
    if images > len(task.train):
        raise ConfigError(
            f"draw_batch: got {images} images, but task {task.name!r} has {len(task.train)} to train on"
        )
    chosen = rng(seed, "proxy batch").choice(len(task.train), images, replace=False)
    index = torch.from_numpy(chosen).to(task.train.y.device)
    return Batch(task.normalise(task.train.x[index]), task.train.y[index])
