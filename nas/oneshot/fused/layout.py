"""Where the kernels keep the maps of a cell, and what they add up in which node.

All maps that are added up in nodes have one shape. What a branch brings into a node is a *contribution*.
Those of convolutions and pools are kept in slots, [slots, P, C] for a whole cell, as they are before their
batch-norm; those of identities are the states themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from nas.oneshot.fused.groups import Branch, Group
from nas.oneshot.fused.stages import Chain, Pool, Same, Shape, shape_after

Edges = Sequence[tuple[int, int, object]]
"""(src, dst, operation) of all edges of a cell."""


@dataclass(frozen=True, eq=False)
class Sum:
    """What the kernels add up in one node.

    Its contributions are [start, stop) of all; those from `same` on are states, namely those of `sources`.
    edges: that bring any. among: [first, last) of all edges that lead into the node.
    """

    start: int
    same: int
    stop: int
    sources: tuple[int, ...]
    edges: tuple[int, ...]
    among: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Level:
    """What leaves one node by the kernels.

    chains, pools, same: by what they are; pools of maxima come first. edges: that they are on.
    chain: the number of the first chain among those of the cell; first: slot of its first branch; every
      branch of a chain has one, then every pool.
    chained: [chains][G] which contribution each branch is; pooled: the same of all pools, one after the
      other, of which each begins at its number in bounds [pools + 1]; most: branches of a pool, at most;
      passed: contributions of identities.
    """

    chains: tuple[Group, ...]
    pools: tuple[Group, ...]
    same: tuple[Group, ...]
    edges: tuple[int, ...]
    chain: int
    first: int
    chained: tuple[Tensor, ...]
    pooled: Tensor
    bounds: Tensor
    most: int
    passed: Tensor

    @property
    def maxima(self) -> int:
        """How many of the pools take the maximum."""
        return sum(isinstance(group.form, Pool) and group.form.largest for group in self.pools)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Slots of each chain, then of each pool, counted from the first of the level."""
        counts = [*(len(group.branches) for group in self.chains), *[1] * len(self.pools)]
        stops = list(accumulate(counts))
        return [(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]

    @property
    def slots(self) -> int:
        """How many there are."""
        return sum(len(group.branches) for group in self.chains) + len(self.pools)


@dataclass(frozen=True, eq=False)
class Layout:
    """The whole cell.

    shape: of the maps. order: the branch of each contribution, node by node. targets: the computed node that
      each edge leads to.
    levels: [nodes]. sums: [computed nodes].
    table: [contributions, 4] slot (0 for a state), number of the node and of the edge, whether it is
      normalised. ones: a weight for each contribution, where the mixture has none.
    owners: [2 * contributions] the slot of each, then the number of all slots and its chain's number; the
      number of all slots and chains where it has none.
    """

    shape: Shape
    slots: int
    chains: int
    order: tuple[Branch, ...]
    targets: tuple[int, ...]
    levels: tuple[Level | None, ...]
    sums: tuple[Sum, ...]
    table: Tensor
    ones: Tensor
    owners: Tensor


def fitting(groups: list[list[Group]], edges: Edges, shapes: Sequence[Shape]) -> list[list[Group]]:
    """The groups of each node; without a form, where the shape of what they read or make is not sure to fit.

    shapes: of the maps of the inputs. That of another node is known where the kernels bring something there.
    """
    known, wanted = dict(enumerate(shapes)), None
    found: list[list[Group]] = []
    for src, own in enumerate(groups):
        found.append([])
        for group in own:
            after = _after(group, known.get(src))
            if after is None or after != (wanted or after):
                found[-1].append(replace(group, form=None))
                continue
            found[-1].append(group)
            wanted = after
            known |= {edges[branch.edge][1]: after for branch in group.branches}
    return found


def _after(group: Group, before: Shape | None) -> Shape | None:
    if before is None or group.form is None:
        return None
    return shape_after(group.form, group.first, before)


@dataclass(frozen=True)
class _Contribution:
    """What a branch brings into a node. slot: where its map is; None where that is a state."""

    branch: Branch
    slot: int | None
    normed: bool
    chain: int | None


def lay_out(
    groups: Sequence[Sequence[Group]], edges: Edges, shapes: Sequence[Shape], device: torch.device
) -> Layout | None:
    """The layout of groups of which those with a form fit; None where there is none."""
    inputs = len(shapes)
    leaving = [[group for group in own if group.form is not None] for own in groups]
    shape = next((_after(group, shapes[src]) for src in range(inputs) for group in leaving[src]), None)
    if shape is None:
        return None
    slots, chains = _slots(leaving), _chains(leaving)
    terms: list[_Contribution] = []
    sums = []
    for dst in range(inputs, len(groups)):
        own = _into(dst, leaving, edges, slots, chains)
        sums.append(_sum(own, len(terms), [e for e, (_, node, _) in enumerate(edges) if node == dst], edges))
        terms += own
    places = {id(term.branch): place for place, term in enumerate(terms)}
    table = [
        n for t in terms for n in (t.slot or 0, edges[t.branch.edge][1] - inputs, t.branch.edge, t.normed)
    ]
    numbers = [_numbers(own, places) for own in leaving]
    count = sum(len(own) for own in slots.values())
    none = count + len(chains)
    owners = [none if t.slot is None else t.slot for t in terms]
    owners += [none if t.chain is None else count + t.chain for t in terms]
    packed = iter(_packed([table, owners, *(row for own in numbers for row in own)], device))
    return Layout(
        shape,
        count,
        len(chains),
        tuple(term.branch for term in terms),
        tuple(dst - inputs for _, dst, _ in edges),
        table=next(packed).view(-1, 4),
        owners=next(packed),
        levels=tuple(_level(own, slots, chains, packed) for own in leaving),
        sums=tuple(sums),
        ones=torch.ones(len(terms), device=device),
    )


def _packed(rows: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """Each row as a tensor; all go to the device in one piece, and each begins where kernels like it."""
    padded = [[*row, *[0] * (-len(row) % 4)] for row in rows]
    whole = torch.tensor([number for row in padded for number in row], dtype=torch.int32, device=device)
    parts = torch.split(whole, [len(row) for row in padded])
    return [part[: len(row)] for row, part in zip(rows, parts, strict=True)]


def _sum(terms: Sequence[_Contribution], start: int, among: Sequence[int], edges: Edges) -> Sum:
    """The sum in a node, of which the contributions begin at `start`. among: all edges that lead there."""
    states = [term.branch.edge for term in terms if term.slot is None]
    stop = start + len(terms)
    return Sum(
        start,
        stop - len(states),
        stop,
        tuple(edges[edge][0] for edge in states),
        tuple(sorted({term.branch.edge for term in terms})),
        (among[0], among[-1] + 1),
    )


def _sorted(groups: Sequence[Group]) -> tuple[list[Group], list[Group], list[Group]]:
    """Chains, pools with those of maxima first, identities."""
    pools = [group for group in groups if isinstance(group.form, Pool)]
    pools.sort(key=lambda group: isinstance(group.form, Pool) and not group.form.largest)
    chains = [group for group in groups if isinstance(group.form, Chain)]
    return chains, pools, [group for group in groups if isinstance(group.form, Same)]


def _slots(leaving: Sequence[Sequence[Group]]) -> dict[int, list[int | None]]:
    """By the number of a group: the slots that are its own; nothing for identities."""
    found: dict[int, list[int | None]] = {}
    free = 0
    for own in leaving:
        chains, pools, _ = _sorted(own)
        for group in chains + pools:
            count = len(group.branches) if isinstance(group.form, Chain) else 1
            found[group.number] = list(range(free, free + count))
            free += count
    return found


def _chains(leaving: Sequence[Sequence[Group]]) -> dict[int, int]:
    """The numbers of the chains of a cell, by those of their groups."""
    chains = [group.number for own in leaving for group in _sorted(own)[0]]
    return {group: number for number, group in enumerate(chains)}


def _into(
    dst: int,
    leaving: Sequence[Sequence[Group]],
    edges: Edges,
    slots: dict[int, list[int | None]],
    chains: dict[int, int],
) -> list[_Contribution]:
    """What the kernels bring into a node, that from slots first."""
    found = []
    for group in (group for own in leaving for group in own):
        assert group.form is not None
        own_slots = slots.get(group.number, [None])
        for at, branch in enumerate(group.branches):
            if edges[branch.edge][1] == dst:
                slot = own_slots[min(at, len(own_slots) - 1)]  # all branches of a pool share one
                found.append(_Contribution(branch, slot, bool(group.form.norms), chains.get(group.number)))
    return sorted(found, key=lambda term: term.slot is None)


def _numbers(groups: Sequence[Group], places: dict[int, int]) -> list[list[int]]:
    """What the kernels read of a level: `chained`, `pooled`, `bounds` and `passed`, one after the other."""
    chains, pools, same = _sorted(groups)

    def placed(groups: Sequence[Group]) -> list[int]:
        return [places[id(branch)] for group in groups for branch in group.branches]

    bounds = [0, *accumulate(len(group.branches) for group in pools)]
    return [*(placed([group]) for group in chains), placed(pools), bounds, placed(same)]


def _level(
    groups: Sequence[Group],
    slots: dict[int, list[int | None]],
    numbers: dict[int, int],
    packed: Iterator[Tensor],
) -> Level | None:
    """packed: what `_numbers` gave, next."""
    chains, pools, same = _sorted(groups)
    chained = tuple(next(packed) for _ in chains)
    pooled, bounds, passed = next(packed), next(packed), next(packed)
    if not groups:
        return None
    return Level(
        tuple(chains),
        tuple(pools),
        tuple(same),
        edges=tuple(sorted({branch.edge for group in groups for branch in group.branches})),
        chain=next((numbers[group.number] for group in chains), 0),
        first=next((slots[group.number][0] or 0 for group in chains + pools), 0),
        chained=chained,
        pooled=pooled,
        bounds=bounds,
        most=max((len(group.branches) for group in pools), default=0),
        passed=passed,
    )
