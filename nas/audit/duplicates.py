"""Copies of images: exact ones by their pixels, near ones by alignment; groups of them, and leakage."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from nas.audit.images import ImageTable, nearest
from nas.data.arrays import Array, Labels
from nas.data.exclusions import SPLITS, Suspect

CANDIDATES, SHIFT = 10, 1
TAIL, LOCAL = 2.5, 0.2
_WAVES = 8
_FEWEST = 20
_PART = 2048


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are copies of each other.

    members: numbers in the audited table of images, what may stay first. origins: their positions in the
      source. files: their files, empty texts where there are none. exact: whether all have the same pixels.
    splits, classes: where they are and what they are labelled; more than one class is a contradiction.
    """

    members: tuple[int, ...]
    origins: tuple[int, ...]
    files: tuple[str, ...]
    exact: bool
    splits: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Near:
    """Pairs of near-copies.

    pairs: [P, 2] numbers in the table, each pair once. distances: [P] of the pairs.
    threshold: the largest distance of a pair; 0 where images are too few to tell.
    """

    pairs: Labels
    distances: Array
    threshold: float


def near_copies(table: ImageTable) -> Near:
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
    _, first = np.unique(table.digests, return_index=True)
    first = np.sort(first[~table.is_blank[first]])
    if len(first) < _FEWEST:
        return Near(np.zeros((0, 2), np.int64), np.zeros(0), 0.0)
    images = table.small[torch.from_numpy(first)]
    _, candidates = nearest(_spectrum(images), CANDIDATES)
    distances = np.stack([_aligned(images, candidate) for candidate in candidates.T], 1)
    least, last = distances.min(1), distances.max(1)
    logs = np.log(np.maximum(least, 1e-6))
    middle = np.median(logs)
    threshold = float(np.exp(middle - TAIL * 1.4826 * np.median(np.abs(logs - middle))))
    alone = distances <= LOCAL * last[:, None]
    crowd = (last <= LOCAL * np.exp(middle))[:, None]
    rows, columns = np.nonzero((distances <= threshold) & (alone | crowd))
    ends = np.stack([first[rows], first[candidates[rows, columns]]], 1)
    pairs, index = np.unique(np.sort(ends, 1), axis=0, return_index=True)
    return Near(pairs, distances[rows, columns][index], threshold)


def _spectrum(images: Tensor) -> Array:
    """Logarithms of the sizes of low frequencies, [N, D] of unit norm."""
    found = []
    for part in torch.split(images, _PART):
        sizes = torch.fft.rfft2(part - part.mean((2, 3), keepdim=True)).abs()
        low = torch.cat([sizes[:, :, :_WAVES, :_WAVES], sizes[:, :, _WAVES:, :_WAVES][:, :, 1 - _WAVES :]], 2)
        low = torch.log1p(low / sizes.mean((1, 2, 3), keepdim=True).clamp_min(1e-6))
        found.append(_unit(low.flatten(1)))
    return torch.cat(found).numpy()


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows - rows.mean(1, keepdim=True), eps=1e-6)


def _aligned(images: Tensor, others: Labels) -> Array:
    """Distances [N] of each image to the image at `others`, at the best shift."""
    pairs = zip(torch.split(images, _PART), torch.split(images[torch.from_numpy(others)], _PART), strict=True)
    return torch.cat([_distance(a, b) for a, b in pairs]).numpy()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    height, width = a.shape[2:]
    down, right = (min(SHIFT, (side - 1) // 2) for side in (height, width))
    inner = _unit(b[:, :, down : height - down, right : width - right].flatten(1))
    best = torch.full((len(a),), -1.0)
    for row, column in itertools.product(range(2 * down + 1), range(2 * right + 1)):
        moved = a[:, :, row : row + height - 2 * down, column : column + width - 2 * right]
        best = torch.maximum(best, (_unit(moved.flatten(1)) * inner).sum(1))
    return (1 - best).clamp_min(0).sqrt()


def groups(table: ImageTable, near: Near) -> list[Group]:
    """Copies that belong together, directly or by others, largest first; no image is in two groups."""
    first: dict[str, int] = {}
    same = [(first.setdefault(digest, number), number) for number, digest in enumerate(table.digests)]
    graph: nx.Graph[int] = nx.Graph([*same, *near.pairs.tolist()])
    found = [_group(table, list(numbers)) for numbers in nx.connected_components(graph) if len(numbers) > 1]
    return sorted(found, key=lambda group: (-len(group.members), group.members))


def _group(table: ImageTable, numbers: Sequence[int]) -> Group:
    """What may stay comes first: a test image before a validation image before a training image."""
    members = sorted(numbers, key=lambda number: (-table.split[number], number))
    return Group(
        tuple(members),
        tuple(int(table.origin[number]) for number in members),
        tuple(table.file(number) for number in members),
        exact=len({table.digests[number] for number in members}) == 1,
        splits=tuple(name for part, name in enumerate(SPLITS) if part in set(table.split[members])),
        classes=tuple(sorted({table.task.classes[label] for label in table.y[members]})),
    )


def copies(table: ImageTable, found: Iterable[Group], near: Near) -> Iterator[Suspect]:
    """All but the first of each group: leaks where they are in another split than it, else duplicates."""
    distance: dict[int, float] = {}
    for pair, value in zip(near.pairs.tolist(), near.distances.tolist(), strict=True):
        for number in pair:
            distance[number] = min(value, distance.get(number, value))
    for group in found:
        kept, *others = group.members
        for number in others:
            exact = table.digests[number] == table.digests[kept]
            leaks = table.split[number] != table.split[kept]
            words = f"{'exact' if exact else 'near'} copy of a {SPLITS[table.split[kept]]} image"
            if table.y[number] != table.y[kept]:
                words += f" of class {table.task.classes[table.y[kept]]}"
            yield table.suspect(
                number,
                "leak" if leaks else "duplicate",
                reason=words,
                score=1.0 if exact else 1 - distance.get(number, 0.0),
                of=kept,
            )
