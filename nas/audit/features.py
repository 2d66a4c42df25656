"""Features of images that need no training with labels: one layer of random convolutions, and its PCA.

Coates and Ng, Learning feature representations with k-means (2012), sections 2 and 4: filters are whitened
patches of the images themselves, drawn at random, with a two-sided soft threshold and mean pooling.
Deviations: the pooled values' square root, 4x4 places, and a PCA to few dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
