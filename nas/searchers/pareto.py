"""Ranking by several objectives at once: dominance, crowding, hypervolume; larger is always better."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
"""One row per architecture, one column per objective; larger is better."""


def dominates(scores: Scores, other: Scores) -> NDArray[np.bool_]:
    """Whether row i of `[N, K]` is nowhere worse than row j of `[M, K]` and somewhere better: `[N, M]`."""
    left, right = scores[:, None, :], other[None, :, :]
    return np.logical_and((left >= right).all(-1), (left > right).any(-1))


def front(scores: Scores) -> NDArray[np.int64]:
    """The rows of `[N, K]` that no other row dominates, in their order.

    From the lexically greatest down, so that a row can only be dominated by one already found; sums would do
    too, but for objectives of scales so different that rounding makes them equal. Equal rows stay together.
    """
    found: list[int] = []
    for row in np.lexsort(-scores.T):
        if not dominates(scores[found], scores[row : row + 1]).any():
            found.append(int(row))
    return np.array(sorted(found), dtype=np.int64)


def ranks(scores: Scores, violations: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """The number of the front `[N]` that each row belongs to, 0 for the best.

    Fast non-dominated sorting (Deb et al. 2002, NSGA-II, §III-A) under constraint domination (§VI-A): what
    keeps all bounds comes before what breaks some, and among those the smaller total excess `[N]` wins.
    """
    better = dominates(scores, scores)
    if violations is not None:
        lesser = violations[:, None] < violations[None, :]
        better = lesser | (better & (violations[:, None] == violations[None, :]))
    waiting = better.sum(0)
    found = np.full(len(scores), -1)
    for rank in range(len(scores)):
        now = (found < 0) & (waiting == 0)
        if not now.any():
            break
        found[now] = rank
        waiting = waiting - better[now].sum(0)
    return found


def crowding(scores: Scores) -> NDArray[np.float64]:
    """How far the neighbours `[N]` of each row of one front are; infinite at its ends (NSGA-II, §III-B)."""
    distance = np.zeros(len(scores))
    for column in scores.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if spread > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance


def hypervolume(scores: Scores, reference: Scores) -> float:
    """The volume that the rows of `[N, K]` dominate above the point `[K]` (Zitzler & Thiele 1999).

    By slices along the last objective, which is exact and quick for the two or three objectives of a search.
    """
    inside = scores[(scores > reference).all(1)] - reference
    return _volume(inside) if len(inside) else 0.0


def _volume(scores: Scores) -> float:
    if scores.shape[1] == 1:
        return float(scores.max())
    order = np.argsort(-scores[:, -1], kind="stable")
    ordered = scores[order]
    if scores.shape[1] == 2:
        heights = np.maximum.accumulate(ordered[:, 0])
        return float((heights * (ordered[:, 1] - np.append(ordered[1:, 1], 0.0))).sum())
    slabs = ordered[:, -1] - np.append(ordered[1:, -1], 0.0)
    return sum(float(slab) * _volume(ordered[: i + 1, :-1]) for i, slab in enumerate(slabs) if slab > 0)
