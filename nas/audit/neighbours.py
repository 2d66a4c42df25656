"""Nearest neighbours by brute force: exact, and fast enough for the images of one task."""

from __future__ import annotations

import torch
from torch import Tensor

_PART = 512


def nearest(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Euclidean distances [N, k] and indices [N, k] of the nearest others of each point, nearest first.

    points: [N, D]. count: k, at most N - 1 are given.
    """
    count = min(count, len(points) - 1)
    squares = points.square().sum(1)
    found = [
        _nearest(points, squares, start, min(start + _PART, len(points)), count)
        for start in range(0, len(points), _PART)
    ]
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)


def _nearest(points: Tensor, squares: Tensor, start: int, end: int, count: int) -> tuple[Tensor, Tensor]:
    distances = squares - 2 * points[start:end] @ points.T
    distances += squares[start:end, None]
    distances[torch.arange(end - start), torch.arange(start, end)] = torch.inf
    values, indices = distances.topk(count, largest=False)
    return values.clamp_min(0).sqrt(), indices
