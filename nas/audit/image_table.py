"""All images of a task in one row, with what every part of the audit asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data.arrays import Array, Labels
from nas.data.exclusions import SPLITS, Kind, Suspect
from nas.data.splits import digest
from nas.data.task import Split, Task

SIDE = 32
"""Pixels of the shorter side that is looked at; larger images are shrunk, which bounds time and memory."""
_PART = 2048
_FLAT = 1e-4  # deviations of an image in units of the task's, below which it has no content


@dataclass(frozen=True, eq=False)
class Pool:
    """The images of training, validation and test part, in this order.

    split: [N] 0, 1 or 2. y: [N]. origin: [N] positions in the source.
    small: [N, C, h, w] float32, normalised, the shorter side at most `SIDE`.
    """

    task: Task
    split: Labels
    y: Labels
    origin: Labels
    small: Tensor

    @classmethod
    def of(cls, task: Task) -> Pool:
        """The images of a task, on the CPU."""
        task = task.to("cpu")
        parts = (task.train, task.val, task.test)
        return cls(
            task,
            np.repeat(np.arange(3), [len(part) for part in parts]),
            np.concatenate([part.y.numpy() for part in parts]),
            np.concatenate([_origin(part) for part in parts]),
            torch.cat([_small(task, part.x) for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def digests(self) -> Sequence[str]:
        """What stands for each image's exact pixels."""
        parts = (self.task.train, self.task.val, self.task.test)
        return [digest(image).hex() for part in parts for image in part.x.numpy()]

    @cached_property
    def is_blank(self) -> Array:
        """Which images are of one value, [N]."""
        return (self.small.flatten(2).std(2, correction=0).amax(1) < _FLAT).numpy()

    def image(self, number: int) -> Tensor:
        """The raw pixels of an image, [C, H, W]."""
        for part in (self.task.train, self.task.val, self.task.test):
            if number < len(part):
                return part.x[number]
            number -= len(part)
        raise IndexError(number)

    def file(self, number: int) -> str:
        """The file of an image, or nothing."""
        return self.task.files[self.origin[number]] if self.task.files else ""

    def suspect(
        self, number: int, kind: Kind, *, reason: str, score: float, suggested: str = "", of: int = -1
    ) -> Suspect:
        """An image that may be wrong; `of` is the number of the image that it is a copy of."""
        return Suspect(
            kind,
            SPLITS[self.split[number]],
            int(self.origin[number]),
            self.file(number),
            self.digests[number],
            self.task.classes[self.y[number]],
            suggested,
            -1 if of < 0 else int(self.origin[of]),
            round(float(score), 6),
            reason,
        )


def _origin(part: Split) -> Labels:
    return np.arange(len(part)) if part.origin is None else part.origin.numpy()


def _small(task: Task, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    scale = min(1.0, SIDE / min(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    parts = (
        [task.normalise(part) for part in torch.split(x, _PART)]
        if scale == 1
        else [F.interpolate(task.normalise(part), size, mode="area") for part in torch.split(x, _PART)]
    )
    return torch.cat(parts)
