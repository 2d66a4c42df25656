"""Identities in the cells of an architecture: how many there are, and how to have fewer."""

from __future__ import annotations

from nas.cell import Cell
from nas.choosers import Slot
from nas.space import Scores, Space
from nas.types import Genotype


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
    roles = _roles(space)
    found = {}
    for kind, kept in members(space).items():
        connected = [role for i in kept if (role := roles[i][genotype[i]]) != "zero"]
        found[kind] = connected.count("identity") / len(connected) if connected else 0.0
    return found


def capped(space: Space, scores: Scores, cap: int) -> Genotype:
    """The valid architecture that the scores prefer with at most `cap` identities in each kind of cell.

    The weakest identity gives way first, to the strongest operation proper at its place, and the rest is
    projected anew (Chen et al., ICCV 2019, P-DARTS, §3.3.2). Where there is no such operation it stays.
    """
    scores, roles = [row.copy() for row in scores], _roles(space)
    fixed: set[int] = set()
    while True:
        genotype = space.nearest(scores)
        found = identities(space, genotype).values()
        surplus = [i for chosen in found if len(chosen) > cap for i in chosen if i not in fixed]
        if not surplus:
            return genotype
        weakest = min(surplus, key=lambda i: float(scores[i][genotype[i]]))
        fixed.add(weakest)
        proper = [role == "op" for role in roles[weakest]]
        if any(is_proper and score > 0 for is_proper, score in zip(proper, scores[weakest], strict=True)):
            scores[weakest][[not is_proper for is_proper in proper]] = 0.0


def _roles(space: Space) -> list[list[str]]:
    """What each option of each decision is; a decision on values has operations only."""
    return [
        list(space.trace.roles.get(d.name, dict.fromkeys(d.options, "op")).values()) for d in space.decisions
    ]
