"""The architecture that alphas choose, with few identities where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.space.cell import Cell
from nas.space.choosers import Slot
from nas.space.space import Scores, Space
from nas.types import Genotype

Judge = Callable[[int, Sequence[int]], Sequence[float]]
"""What options of a decision, by its position, are worth, larger is better."""


def members(space: Space) -> dict[str, list[int]]:
    """The decisions, by position, on the edges of each kind of cell; those outside cells under no name."""
    position = {d.name: i for i, d in enumerate(space.decisions)}
    found: dict[str, dict[int, None]] = {}
    for cell in space.outline.modules():
        if isinstance(cell, Cell):
            slots = [op for _, _, op in cell.edges() if isinstance(op, Slot)]
            found.setdefault(cell.kind, {}).update({position[slot.decision]: None for slot in slots})
    inside = {i for kind in found.values() for i in kind}
    outside = {i: None for i in position.values() if i not in inside}
    return {kind: list(kept) for kind, kept in (found | {"": outside}).items() if kept}


def identities(space: Space, genotype: Genotype) -> dict[str, list[int]]:
    """The decisions, by position, that chose the identity in each kind of cell."""
    roles = _roles(space)
    return {
        kind: [i for i in kept if roles[i][genotype[i]] == "identity"]
        for kind, kept in members(space).items()
    }


def skip_shares(space: Space, genotype: Genotype) -> dict[str, float]:
    """The share of identities among the connections of each kind of cell, in [0, 1]."""
    roles, found = _roles(space), {}
    for kind, kept in members(space).items():
        connected = [role for i in kept if (role := roles[i][genotype[i]]) != "zero"]
        found[kind] = connected.count("identity") / len(connected) if connected else 0.0
    return found


def keeps_cap(space: Space, genotype: Genotype, cap: int) -> bool:
    """Whether no kind of cell has more than `cap` identities, or nothing else."""
    return not _surplus(space, genotype, cap)


def capped(space: Space, scores: Scores, cap: int, judge: Judge | None = None) -> Genotype:
    """The valid architecture that the scores prefer, of those that keep the cap.

    In each kind of cell the weakest identity gives way first, and the rest is projected anew (Chen et al.,
    ICCV 2019, P-DARTS, §3.3.2). Its place is taken by the operation proper that scores highest there, or,
    where the alphas have collapsed and so say little, by the one that the judge finds best. Where there is
    no such operation it stays.
    """
    scores, roles = [row.copy() for row in scores], _roles(space)
    fixed: set[int] = set()
    while True:
        genotype = space.nearest(scores)
        surplus = [i for i in _surplus(space, genotype, cap) if i not in fixed]
        if not surplus:
            return genotype
        weakest = min(surplus, key=lambda i: float(scores[i][genotype[i]]))
        fixed.add(weakest)
        row = scores[weakest]
        proper = [o for o, role in enumerate(roles[weakest]) if role == "op" and row[o] > 0]
        if not proper:
            continue
        worth = [row[o] for o in proper] if judge is None else judge(weakest, proper)
        best = proper[int(np.argmax(worth))]
        height = row[best] if judge is None else row.max()
        scores[weakest] = height * np.eye(len(row))[best]


def barred(space: Space, alive: Sequence[Sequence[int]], decision: int, cap: int) -> tuple[int, ...]:
    """The identities that a decision must not be fixed to, as its kind of cell has `cap` of them already.

    alive: the options of each decision; what has only one is fixed. At least one decision of a kind is left
      for something else.
    """
    roles = _roles(space)
    kind = next(kept for kept in members(space).values() if decision in kept)
    fixed = [roles[i][alive[i][0]] for i in kind if i != decision and len(alive[i]) == 1]
    if fixed.count("identity") < min(cap, len(kind) - 1):
        return ()
    return tuple(o for o in alive[decision] if roles[decision][o] == "identity")


def _surplus(space: Space, genotype: Genotype, cap: int) -> list[int]:
    """All identities of the kinds of cell that have more than `cap` of them, or nothing else."""
    roles, kinds, found = _roles(space), members(space), []
    for kind, chosen in identities(space, genotype).items():
        connected = sum(roles[i][genotype[i]] != "zero" for i in kinds[kind])
        if len(chosen) > min(cap, max(0, connected - 1)):
            found += chosen
    return found


def _roles(space: Space) -> list[list[str]]:
    """What each option of each decision is; a decision on values has operations only."""
    return [
        list(space.trace.roles.get(d.name, dict.fromkeys(d.options, "op")).values()) for d in space.decisions
    ]


def by_alphas(space: Space, strengths: Scores, cap: int | None, *, judge: Judge | None = None) -> Genotype:
    """What the alphas prefer, if it has at most `cap` identities in a cell; any number where that is None.

    Else what they prefer with other operations in place of identities, see `capped`.
    """
    return space.nearest(strengths) if cap is None else capped(space, strengths, cap, judge)


def without_zeros(space: Space, strengths: Scores) -> list[NDArray[np.float64]]:
    """Strengths in which no connection is left out where it may be anything else.

    How strong `none` is says nothing: what it makes smaller is normalised again (Liu et al. 2019, §2.4).
    """
    found = []
    for row, roles in zip(strengths, _roles(space), strict=True):
        zero = np.array([role == "zero" for role in roles])
        found.append(row if (row[~zero] <= 0).all() else np.where(zero, 0.0, row))
    return found
