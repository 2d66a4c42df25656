"""The images of a task as the audit looks at them, features of them that need no labels, and outliers.

Features are one layer of random convolutions (Coates and Ng, Learning feature representations with k-means,
2012, sections 2 and 4): filters are whitened patches of the images themselves, drawn at random, with a
two-sided soft threshold and mean pooling. Deviations: the pooled values' square root, 4x4 places, and a
principal component analysis to few dimensions.
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

from nas.data.arrays import Array, Labels, digest
from nas.data.exclusions import SPLITS, Kind, Suspect
from nas.data.task import Task
from nas.seeding import derive, rng

SIDE = 32
"""Pixels of the shorter side that is looked at; larger images are shrunk, which bounds time and memory."""
DIMENSIONS = 200
FILTERS, PATCH, PLACES = 64, 5, 4
_PATCHES, _PATCHED = 5_000, 500
"""Patches that filters are made from, and the images that these are drawn from."""
_FITTED = 10_000
"""Images that the components are fitted on."""
_PART = 256
_CONTRAST, _WHITENING, _THRESHOLD = 0.1, 0.1, 0.25
_FLAT = 1e-4
"""Deviation of an image, in units of the task's, below which it has no content."""
NEIGHBOURS, CUT = 10, 4.0
_FEWEST = 20


@dataclass(frozen=True, eq=False)
class ImageTable:
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
    def of(cls, task: Task) -> ImageTable:
        """The images of a task, on the CPU."""
        task = task.to("cpu")
        parts = list(task.splits.values())
        origins = [torch.arange(len(part)) if part.origin is None else part.origin for part in parts]
        return cls(
            task,
            np.repeat(np.arange(3), [len(part) for part in parts]),
            torch.cat([part.y for part in parts]).numpy(),
            torch.cat(origins).numpy(),
            torch.cat([_small(task, images) for part in parts for images in torch.split(part.x, _PART)]),
        )

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def digests(self) -> Sequence[str]:
        """What stands for each image's exact pixels."""
        return [digest(image).hex() for part in self.task.splits.values() for image in part.x.numpy()]

    @cached_property
    def is_blank(self) -> Array:
        """Which images are of one value, [N]."""
        return (self.small.flatten(2).std(2, correction=0).amax(1) < _FLAT).numpy()

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


def _small(task: Task, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    scale = min(1.0, SIDE / min(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return task.normalise(x) if scale == 1 else F.interpolate(task.normalise(x), size, mode="area")


def features(x: Tensor, seed: int) -> Array:
    """Features [N, D] float32 with D at most 200, of mean 0 and first deviation 1.

    x: normalised images [N, C, H, W].
    """
    from sklearn.decomposition import PCA

    filters = _filters(x, seed)
    pooled = np.concatenate([_responses(part, *filters) for part in torch.split(x, _PART)])
    sample = pooled[np.sort(rng(seed, "pca").permutation(len(x))[:_FITTED])]
    with np.errstate(invalid="ignore"):  # where all images are the same
        pca = PCA(min(DIMENSIONS, *sample.shape), random_state=derive(seed, "pca") % 2**32).fit(sample)
    scaled: Array = pca.transform(pooled) / max(float(pca.explained_variance_[0]) ** 0.5, 1e-6)
    return scaled


def _filters(x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Filters [F, C, h, w] drawn from the images, for evened patches, and the mean of these, [C h w]."""
    patch = min(PATCH, x.shape[2]), min(PATCH, x.shape[3])
    draw = rng(seed, "patches")
    images = x[torch.from_numpy(draw.permutation(len(x))[:_PATCHED])]
    patches = F.unfold(images, patch).transpose(1, 2).flatten(0, 1)
    patches = patches[torch.from_numpy(draw.permutation(len(patches))[:_PATCHES])]
    patches = patches - patches.mean(1, keepdim=True)
    patches = patches / (patches.square().mean(1, keepdim=True) + _CONTRAST).sqrt()
    mean = patches.mean(0)
    values, axes = torch.linalg.eigh(torch.cov(patches.T, correction=0))
    whitening = axes @ torch.diag((values + _WHITENING).rsqrt()) @ axes.T
    filters = F.normalize((patches[:FILTERS] - mean) @ whitening, eps=1e-6) @ whitening
    return filters.view(-1, x.shape[1], *patch), mean


def _responses(x: Tensor, weight: Tensor, mean: Tensor) -> Array:
    """Pooled responses [N, 2 F places] of images [N, C, H, W].

    They are those to patches without brightness and, but for faint ones, contrast, by convolutions of the
    whole images: no patch is written out.
    """
    ones = torch.full_like(weight[:1], 1 / math.prod(weight.shape[1:]))
    middle = F.conv2d(x, ones)
    contrast = (F.conv2d(x.square(), ones) - middle.square()).clamp_min(0)
    response = F.conv2d(x, weight) - weight.sum((1, 2, 3))[:, None, None] * middle
    response = response / (contrast + _CONTRAST).sqrt() - (weight.flatten(1) @ mean)[:, None, None]
    rows, columns = response.shape[2:]
    both = torch.cat([F.relu(response - _THRESHOLD), F.relu(-response - _THRESHOLD)], 1)
    pooled = F.adaptive_avg_pool2d(both, (min(PLACES, rows), min(PLACES, columns)))
    return pooled.flatten(1).sqrt().numpy()


def nearest(points: Array, count: int) -> tuple[Array, Labels]:
    """Euclidean distances [N, k] and indices [N, k] of the nearest others of each point, nearest first.

    points: [N, D]. count: k, at most N - 1 are given.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(count, len(points) - 1), algorithm="brute")
    distances, indices = search.fit(points).kneighbors()
    return distances, indices


def outliers(table: ImageTable, features: Array) -> list[Suspect]:
    """Images far from their 10 nearest neighbours, and those of one value only, the most suspect first.

    The distance is the mean over the neighbours in feature space (Angiulli and Pizzuti, Fast outlier
    detection in high dimensional spaces, 2002, with the mean for their sum). An image is suspect when the
    logarithm of its distance lies more than `CUT` robust deviations above the median, the deviation being
    1.4826 times the median distance from the median of the upper half: the lower half holds copies and
    crowded classes, which say nothing of how far regular images may be.

    features: [N, D] of the table's images. Fewer than 20 images are not judged.
    """
    scores = np.where(table.is_blank, 99.0, 0.0)
    if len(table) >= _FEWEST:
        logs = np.log(np.maximum(nearest(features, NEIGHBOURS)[0].mean(1), 1e-9))
        middle = np.median(logs)
        spread = 1.4826 * np.median(logs[logs >= middle] - middle)
        scores = np.where(table.is_blank, scores, (logs - middle) / max(spread, 1e-9))
    suspects = np.flatnonzero(table.is_blank | (scores > CUT)).tolist()
    words = ("far from all other images", "every pixel has the same value")
    return [
        table.suspect(i, "outlier", reason=words[int(table.is_blank[i])], score=scores[i])
        for i in sorted(suspects, key=lambda i: (not table.is_blank[i], -scores[i], i))
    ]
