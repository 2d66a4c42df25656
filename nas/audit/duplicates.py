"""Copies of images: exact ones by their pixels, near ones by alignment; groups of them, and leakage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nas.audit.findings import Group
from nas.audit.image_features import Pool, nearest
from nas.data.arrays import Array, Labels
from nas.data.exclusions import SPLITS, Suspect

CANDIDATES, SHIFT = 10, 1
TAIL, LOCAL = 2.5, 0.2
_WAVES = 8
_FEWEST = 20
_PART = 2048


@dataclass(frozen=True, eq=False)
class Near:
    """Pairs of near-copies.

    pairs: [P, 2] numbers in the pool, each pair once. distances: [P] of the pairs.
    threshold: the largest distance of a pair; 0 where images are too few to tell.
    """

    pairs: Labels
    distances: Array
    threshold: float


def near_copies(pool: Pool) -> Near:
    """Pairs of images that are the same but for a small shift, brightness, contrast and noise.

    Candidates are the 10 nearest by the sizes of low spatial frequencies, which no shift changes (the shift
    theorem of the Fourier transform), without the mean (brightness), of unit norm (contrast). A candidate is
    compared at all shifts up to one pixel: its distance is sqrt(1 - r), r the largest correlation of the
    pixels where both overlap.

    Two bounds come from the data. The distance is at most the median of all images' least distances, less 2.5
    robust deviations in logarithms (1.4826 times the median distance from the median). And as some kinds of
    image (trousers) are more alike than others, it is at most a fifth of the distance to the last candidate,
    the ratio test of Lowe (Distinctive image features, 2004, section 7.1); where that one is a copy, too,
    nearer than a fifth of the median, the first bound is enough.

    Exact copies are taken once, images of one value not at all; fewer than 20 images are not judged.
    """
    first = _firsts(pool)
    if len(first) < _FEWEST:
        return Near(np.zeros((0, 2), np.int64), np.zeros(0), 0.0)
    images = pool.small[torch.from_numpy(first)]
    _, candidates = nearest(_spectrum(images), CANDIDATES)
    distances = torch.stack([_aligned(images, candidate) for candidate in candidates.T], 1).numpy()
    least, last = distances.min(1), distances.max(1)
    logs = np.log(np.maximum(least, 1e-6))
    middle = np.median(logs)
    threshold = float(np.exp(middle - TAIL * 1.4826 * np.median(np.abs(logs - middle))))
    alone = distances <= LOCAL * last[:, None]
    crowd = (last <= LOCAL * np.exp(middle))[:, None]
    fits = (distances <= threshold) & (alone | crowd)
    rows, columns = np.nonzero(fits)
    ends = np.stack([first[rows], first[candidates.numpy()[rows, columns]]], 1)
    pairs, index = np.unique(np.sort(ends, 1), axis=0, return_index=True)
    return Near(pairs, distances[rows, columns][index], threshold)


def _firsts(pool: Pool) -> Labels:
    """One of each exact copy, without images of one value."""
    first = {digest: number for number, digest in reversed(list(enumerate(pool.digests)))}
    return np.array(sorted(number for number in first.values() if not pool.is_blank[number]), np.int64)


def _spectrum(images: Tensor) -> Tensor:
    """Logarithms of the sizes of low frequencies, [N, D] of unit norm."""
    found = []
    for part in torch.split(images, _PART):
        sizes = torch.fft.rfft2(part - part.mean((2, 3), keepdim=True)).abs()
        low = torch.cat([sizes[:, :, :_WAVES, :_WAVES], sizes[:, :, _WAVES:, :_WAVES][:, :, 1 - _WAVES :]], 2)
        low = torch.log1p(low / sizes.mean((1, 2, 3), keepdim=True).clamp_min(1e-6))
        found.append(_unit(low.flatten(1)))
    return torch.cat(found)


def _unit(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    length: Tensor = centred.square().sum(1, keepdim=True).sqrt()
    return centred / length.clamp_min(1e-6)


def _aligned(images: Tensor, others: Tensor) -> Tensor:
    """Distances [N] of each image to the image at `others`, at the best shift."""
    parts = zip(torch.split(images, _PART), torch.split(others, _PART), strict=True)
    return torch.cat([_distance(part, images[other]) for part, other in parts])


def _distance(a: Tensor, b: Tensor) -> Tensor:
    height, width = a.shape[2:]
    down, right = (min(SHIFT, (side - 1) // 2) for side in (height, width))
    best = torch.full((len(a),), -1.0)
    inner = _unit(b[:, :, down : height - down, right : width - right].flatten(1))
    for row in range(2 * down + 1):
        for column in range(2 * right + 1):
            moved = a[:, :, row : row + height - 2 * down, column : column + width - 2 * right]
            best = torch.maximum(best, (_unit(moved.flatten(1)) * inner).sum(1))
    return (1 - best).clamp_min(0).sqrt()


def groups(pool: Pool, near: Near) -> list[Group]:
    """Copies that belong together, directly or by others, largest first; no image is in two groups."""
    parent = list(range(len(pool)))
    first: dict[str, int] = {}
    for number, digest in enumerate(pool.digests):
        _join(parent, first.setdefault(digest, number), number)
    for a, b in near.pairs.tolist():
        _join(parent, a, b)
    members: dict[int, list[int]] = {}
    for number in range(len(pool)):
        members.setdefault(_root(parent, number), []).append(number)
    found = [_group(pool, numbers) for numbers in members.values() if len(numbers) > 1]
    return sorted(found, key=lambda group: (-len(group.members), group.members))


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _join(parent: list[int], a: int, b: int) -> None:
    a, b = sorted((_root(parent, a), _root(parent, b)))
    parent[b] = a


def _group(pool: Pool, numbers: Sequence[int]) -> Group:
    """What may stay comes first: a test image before a validation image before a training image."""
    members = sorted(numbers, key=lambda number: (-pool.split[number], number))
    return Group(
        tuple(members),
        tuple(int(pool.origin[number]) for number in members),
        tuple(pool.file(number) for number in members),
        exact=len({pool.digests[number] for number in members}) == 1,
        splits=tuple(name for part, name in enumerate(SPLITS) if part in set(pool.split[members])),
        classes=tuple(sorted({pool.task.classes[label] for label in pool.y[members]})),
    )


def copies(pool: Pool, found: Iterable[Group], near: Near) -> Iterator[Suspect]:
    """All but the first of each group: leaks where they are in another split than it, else duplicates."""
    distance: dict[int, float] = {}
    for (a, b), value in zip(near.pairs.tolist(), near.distances.tolist(), strict=True):
        for number in (a, b):
            distance[number] = min(value, distance.get(number, value))
    for group in found:
        kept, *others = group.members
        for number in others:
            exact = pool.digests[number] == pool.digests[kept]
            leaks = pool.split[number] != pool.split[kept]
            words = f"{'exact' if exact else 'near'} copy of a {SPLITS[pool.split[kept]]} image"
            if pool.y[number] != pool.y[kept]:
                words += f" of class {pool.task.classes[pool.y[kept]]}"
            yield pool.suspect(
                number,
                "leak" if leaks else "duplicate",
                reason=words,
                score=1.0 if exact else 1 - distance.get(number, 0.0),
                of=kept,
            )
