"""Features of images that need no training with labels: one layer of random convolutions, and its PCA.

Coates and Ng, Learning feature representations with k-means (2012), sections 2 and 4: filters are whitened
patches of the images themselves, drawn at random, with a two-sided soft threshold and mean pooling.
Deviations: the pooled values' square root, 4x4 places, and a PCA to few dimensions.
"""

from __future__ import annotations

import math
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
from nas.seeding import isolated, rng

FILTERS, PATCH, PLACES = 64, 5, 4
DIMENSIONS = 200
_PATCHES = 5_000
_IMAGES = 10_000  # that the PCA is fitted on
_PART = 256
_CONTRAST, _WHITENING, _THRESHOLD = 0.1, 0.1, 0.25


def features(x: Tensor, seed: int) -> Tensor:
    """Features [N, D] float32 with D at most 200, of mean 0 and first deviation 1, of images [N, C, H, W].

    x: normalised images.
    """
    layer = _Layer.of(x, seed)
    chosen = np.sort(rng(seed, "pca").permutation(len(x))[:_IMAGES])
    sample = layer(x[torch.from_numpy(chosen)])
    mean = sample.mean(0)
    keep = min(DIMENSIONS, *sample.shape)
    with isolated(seed, "pca"):
        _, values, axes = torch.pca_lowrank(sample - mean, keep, center=False)
    projection: Tensor = axes / (values[0] / len(sample) ** 0.5).clamp_min(1e-6)
    if len(chosen) == len(x):
        whole: Tensor = (sample - mean) @ projection
        return whole
    return torch.cat([(layer(part) - mean) @ projection for part in torch.split(x, _PART)])


@dataclass(frozen=True, eq=False)
class _Layer:
    """weight: [F, P] filters on normalised patches. mean: [P] of these. patch: (h, w)."""

    weight: Tensor
    mean: Tensor
    patch: tuple[int, int]

    @classmethod
    def of(cls, x: Tensor, seed: int) -> _Layer:
        """Filters drawn from the images."""
        height, width = x.shape[2:]
        patch = min(PATCH, height), min(PATCH, width)
        draw = rng(seed, "patches")
        corners = zip(
            draw.integers(len(x), size=_PATCHES),
            draw.integers(height - patch[0] + 1, size=_PATCHES),
            draw.integers(width - patch[1] + 1, size=_PATCHES),
            strict=True,
        )
        patches = torch.stack([x[i, :, r : r + patch[0], c : c + patch[1]].flatten() for i, r, c in corners])
        patches = _even(patches, 1)
        mean = patches.mean(0)
        values, axes = torch.linalg.eigh(torch.cov(patches.T, correction=0))
        whitening = axes @ torch.diag((values + _WHITENING).rsqrt()) @ axes.T
        filters = (patches[:FILTERS] - mean) @ whitening
        filters = filters / filters.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return cls(filters @ whitening, mean, patch)

    def __call__(self, x: Tensor) -> Tensor:
        """Pooled responses [N, 2 F places] of images [N, C, H, W]."""
        return torch.cat([self._pooled(part) for part in torch.split(x, _PART)])

    def _pooled(self, x: Tensor) -> Tensor:
        """The filters on patches evened as by `_even`, by convolutions: no patch is written out."""
        size = math.prod(self.patch) * x.shape[1]
        ones = torch.ones(1, x.shape[1], *self.patch) / size
        middle = F.conv2d(x, ones)
        contrast = (F.conv2d(x.square(), ones) - middle.square()).clamp_min(0)
        weight = self.weight.view(-1, x.shape[1], *self.patch)
        response = F.conv2d(x, weight) - self.weight.sum(1)[:, None, None] * middle
        response = response / (contrast + _CONTRAST).sqrt() - (self.weight @ self.mean)[:, None, None]
        rows, columns = response.shape[2:]
        both = torch.cat([F.relu(response - _THRESHOLD), F.relu(-response - _THRESHOLD)], 1)
        return F.adaptive_avg_pool2d(both, (min(PLACES, rows), min(PLACES, columns))).flatten(1).sqrt()


def _even(patches: Tensor, axis: int) -> Tensor:
    """Patches without their brightness and, but for faint ones, their contrast."""
    centred = patches - patches.mean(axis, keepdim=True)
    return centred / (centred.square().mean(axis, keepdim=True) + _CONTRAST).sqrt()


SIDE = 32
"""Pixels of the shorter side that is looked at; larger images are shrunk, which bounds time and memory."""
_BLOCK = 2048
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
        [task.normalise(part) for part in torch.split(x, _BLOCK)]
        if scale == 1
        else [F.interpolate(task.normalise(part), size, mode="area") for part in torch.split(x, _BLOCK)]
    )
    return torch.cat(parts)


_ROWS = 512


def nearest(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Euclidean distances [N, k] and indices [N, k] of the nearest others of each point, nearest first.

    points: [N, D]. count: k, at most N - 1 are given.
    """
    count = min(count, len(points) - 1)
    squares = points.square().sum(1)
    found = [
        _nearest(points, squares, start, min(start + _ROWS, len(points)), count)
        for start in range(0, len(points), _ROWS)
    ]
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)


def _nearest(points: Tensor, squares: Tensor, start: int, end: int, count: int) -> tuple[Tensor, Tensor]:
    distances = squares - 2 * points[start:end] @ points.T
    distances += squares[start:end, None]
    distances[torch.arange(end - start), torch.arange(start, end)] = torch.inf
    values, indices = distances.topk(count, largest=False)
    return values.clamp_min(0).sqrt(), indices
