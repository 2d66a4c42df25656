"""How the maps of a cell are laid out for the kernels; see `layout` for what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from nas.oneshot.fused.families import Family, families_of, kernel_kind
from nas.oneshot.fused.groups import Branch, Group
from nas.oneshot.fused.kernels.tiles import tickets_of
from nas.oneshot.fused.layout import Layout, Level, Line, Sum
from nas.oneshot.fused.stages import Chain, Pool, Same, Shape, shape_after

Edges = Sequence[tuple[int, int, object]]
"""(src, dst, operation) of all edges of a cell."""


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


@dataclass(frozen=True, eq=False)
class _Draft:
    """A level before its tensors are made.

    sources: the nodes whose maps it reads.
    spans: [families][stages] as in `Line`. slots: all of each branch, by its identity; what it brings is in
    the last one. count: slots in all.
    """

    sources: tuple[int, ...]
    families: list[Family]
    pools: list[Group]
    same: list[Group]
    first: int
    spans: list[tuple[tuple[int, int] | None, ...]]
    slots: dict[int, list[int]]
    count: int

    @classmethod
    def of(cls, sources: tuple[int, ...], groups: Sequence[Group], first: int) -> _Draft:
        """groups: that leave the sources, in turns where those are several. first: the next free slot."""
        chains, pools, same = _sorted(groups)
        families, at = families_of(chains), 0
        spans: list[tuple[tuple[int, int] | None, ...]] = []
        slots: dict[int, list[int]] = {}
        for family in families:
            own: list[tuple[int, int] | None] = []
            for stage, count in enumerate(family.counts):
                if family.apart and stage + 1 < len(family.counts):
                    own.append(None)
                    continue
                own.append((at, at + count))
                for member, branch in enumerate(family.branches[:count]):
                    slots.setdefault(id(branch), []).append(first + at + member)
                at += count
            spans.append(tuple(own))
        for group in pools:
            slots |= {id(branch): [first + at] for branch in group.branches}  # all of a pool share one
            at += 1
        return cls(sources, families, pools, same, first, spans, slots, at)


@dataclass(frozen=True)
class _Contribution:
    """What a branch brings into a node. slots: its own; none where its map is a state."""

    branch: Branch
    slots: list[int]
    normed: bool


def lay_out(
    groups: Sequence[Sequence[Group]],
    edges: Edges,
    shapes: Sequence[Shape],
    device: torch.device,
    *,
    alike: bool = False,
) -> Layout | None:
    """The layout of groups of which those with a form fit; None where there is none.

    alike: whether all inputs are of one shape and in the same need of gradients.
    """
    inputs = len(shapes)
    leaving = [[group for group in own if group.form is not None] for own in groups]
    shape = next((_after(group, shapes[src]) for src in range(inputs) for group in leaving[src]), None)
    if shape is None:
        return None
    joint = _in_turns(leaving[:inputs]) if alike and inputs > 1 else None
    if joint is not None:
        leaving[:inputs] = [joint, *[[] for _ in range(inputs - 1)]]
    drafts: list[_Draft] = []
    for src, own in enumerate(leaving):
        sources = (src,) if joint is None or src > 0 else tuple(range(inputs))
        drafts.append(_Draft.of(sources, own, drafts[-1].first + drafts[-1].count if drafts else 0))
    terms: list[_Contribution] = []
    sums = []
    for dst in range(inputs, len(groups)):
        into = _into(dst, leaving, edges, drafts)
        sums.append(_sum(into, len(terms), [e for e, (_, node, _) in enumerate(edges) if node == dst], edges))
        terms += into
    places = {id(term.branch): place for place, term in enumerate(terms)}
    table = [
        n
        for term in terms
        for n in (
            term.slots[-1] if term.slots else 0, edges[term.branch.edge][1] - inputs, term.branch.edge,
            term.normed,
        )
    ]  # fmt: skip
    pairs = [(place, slot) for place, term in enumerate(terms) for slot in term.slots]
    rows = _rows(drafts, places)
    numbers = [
        table, [place for place, _ in pairs], [slot for _, slot in pairs], [n for row in rows for n in row],
    ]  # fmt: skip
    packed = iter(_packed([*numbers, *(row for own in drafts for row in _numbers(own, places))], device))
    ordered, owners, owned, in_rows = (next(packed) for _ in numbers)
    return Layout(
        shape,
        drafts[-1].first + drafts[-1].count,
        sum(len(own.families) for own in drafts),
        tuple(term.branch for term in terms),
        tuple(dst - inputs for _, dst, _ in edges),
        levels=_levels(drafts, places, packed),
        sums=tuple(sums),
        table=ordered.view(-1, 4),
        ones=torch.ones(len(terms), device=device),
        owners=owners,
        owned=owned,
        rows=in_rows.view(len(rows), -1) if rows else in_rows.view(0, 0),
        tickets=torch.zeros(_most_tickets(drafts, len(terms), shape), dtype=torch.int32, device=device),
    )


def lay_out_each(groups: Sequence[Group], device: torch.device) -> Level:
    """A level of groups of chains of one stage, of which each is a line and reads a map of its own."""
    families = [families_of([group])[0] for group in groups]
    stops = [*accumulate(len(family.branches) for family in families)]
    spans = [((stop - len(family.branches), stop),) for family, stop in zip(families, stops, strict=True)]
    branches = [branch for family in families for branch in family.branches]
    slots = {id(branch): [slot] for slot, branch in enumerate(branches)}
    draft = _Draft(tuple(range(len(groups))), families, [], [], 0, [*spans], slots, len(branches))
    places = {id(branch): place for place, branch in enumerate(branches)}
    (level,) = _levels([draft], places, iter(_packed(_numbers(draft, places), device)))
    assert level is not None
    return level


def _most_tickets(drafts: Sequence[_Draft], terms: int, shape: Shape) -> int:
    """How many tiles of channels of all operations there are, at most, of which a launch may make sums."""
    inner = [conv.out_channels for own in drafts for family in own.families for conv in family.convolutions]
    slots = drafts[-1].first + drafts[-1].count
    return max(terms, slots) * tickets_of(max([shape[0], *inner]))


def _in_turns(leaving: Sequence[Sequence[Group]]) -> list[Group] | None:
    """What leaves several nodes, so that it can be one level; None where it is not the same of each.

    Branches of convolutions and identities take turns in one group, pools one after the other.
    """
    kinds = [[(tuple(rule.key for rule in g.rules), g.form, len(g.branches)) for g in own] for own in leaving]
    if any(own != kinds[0] for own in kinds):
        return None
    found: list[Group] = []
    for kin in zip(*leaving, strict=True):
        found += kin if isinstance(kin[0].form, Pool) else [_merged(kin)]
    return found


def _merged(groups: Sequence[Group]) -> Group:
    """Groups of equal size in one, their branches in turns."""
    branches = tuple(branch for turn in zip(*(g.branches for g in groups), strict=True) for branch in turn)
    layers = [
        tuple(layer for turn in zip(*own, strict=True) for layer in turn)
        for own in zip(*(g.layers for g in groups), strict=True)
    ]
    return replace(groups[0], branches=branches, layers=tuple(layers))


def _packed(rows: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    """Each row as a tensor; all go to the device in one piece, and each begins where kernels like it."""
    padded = [[*row, *[0] * (-len(row) % 4)] for row in rows]
    whole = torch.tensor([number for row in padded for number in row], dtype=torch.int32, device=device)
    parts = torch.split(whole, [len(row) for row in padded])
    return [part[: len(row)] for row, part in zip(rows, parts, strict=True)]


def _sum(terms: Sequence[_Contribution], start: int, among: Sequence[int], edges: Edges) -> Sum:
    """The sum in a node, of which the contributions begin at `start`. among: all edges that lead there."""
    states = [term.branch.edge for term in terms if not term.slots]
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


def _into(
    dst: int, leaving: Sequence[Sequence[Group]], edges: Edges, drafts: Sequence[_Draft]
) -> list[_Contribution]:
    """What the kernels bring into a node, that from slots first."""
    found = []
    for own, draft in zip(leaving, drafts, strict=True):
        for group in own:
            assert group.form is not None
            for branch in group.branches:
                if edges[branch.edge][1] == dst:
                    slots = draft.slots.get(id(branch), [])
                    found.append(_Contribution(branch, slots, bool(group.form.norms)))
    return sorted(found, key=lambda term: not term.slots)


def _rows(drafts: Sequence[_Draft], places: dict[int, int]) -> list[list[int]]:
    """`Layout.rows`."""
    families = [family for draft in drafts for family in draft.families]
    most = max((len(family.branches) for family in families), default=0)
    found = []
    for later in (False, True):
        for family in families:
            for count in family.counts[1:] if later else family.counts[:1]:
                own = [places[id(branch)] for branch in family.branches[:count]]
                found.append(own + [len(places)] * (most - count))
    return found


def _numbers(draft: _Draft, places: dict[int, int]) -> list[list[int]]:
    """What the kernels read of a level: of each line, then `ending`, `pooled`, `bounds` and `passed`."""
    found: list[list[int]] = []
    begin = 0
    for family in draft.families:
        for step in family.steps:
            stops = list(accumulate((conv.weight.numel() for conv in step.convolutions), initial=begin))
            begin = stops[-1]
            found += [[step.kinds.index(kernel_kind(conv)) for conv in step.convolutions], stops[:-1]]

    def placed(branches: Iterable[Branch]) -> list[int]:
        return [places[id(branch)] for branch in branches]

    ending = [branch for family in draft.families for branch in family.branches]
    bounds = [0, *accumulate(len(group.branches) for group in draft.pools)]
    pooled = [branch for group in draft.pools for branch in group.branches]
    same = [branch for group in draft.same for branch in group.branches]
    return [*found, placed(ending), placed(pooled), bounds, placed(same)]


def _levels(
    drafts: Sequence[_Draft], places: dict[int, int], packed: Iterator[Tensor]
) -> tuple[Level | None, ...]:
    """places: the contribution of each branch, by identity. packed: what `_numbers` gave, draft by draft."""
    line, row = 0, sum(len(draft.families) for draft in drafts)
    found = []
    for draft in drafts:
        own: list[Line] = []
        for family, spans in zip(draft.families, draft.spans, strict=True):
            later = len(family.counts) - 1
            # The first stage of a line has its number for a row, later ones follow those of all lines.
            rows = (line + len(own), *range(row, row + later))
            own.append(_line(family, spans, rows, packed))
            row += later
        branches = tuple(tuple(places[id(b)] for b in group.branches) for group in draft.pools)
        found.append(_level(draft, own, line, branches, packed))
        line += len(own)
    return tuple(found)


def _line(
    family: Family, spans: tuple[tuple[int, int] | None, ...], rows: tuple[int, ...], packed: Iterator[Tensor]
) -> Line:
    numbers = [(next(packed), next(packed)) for _ in family.steps]
    most = tuple(len({branch.edge for branch in family.branches[:count]}) for count in family.counts)
    kinds, places = zip(*numbers, strict=True)
    return Line(family, spans, rows, most, kinds, places)


def _level(
    draft: _Draft,
    lines: Sequence[Line],
    line: int,
    branches: tuple[tuple[int, ...], ...],
    packed: Iterator[Tensor],
) -> Level | None:
    ending, pooled, bounds, passed = (next(packed) for _ in range(4))
    members = [branch for family in draft.families for branch in family.branches]
    members += [branch for group in (*draft.pools, *draft.same) for branch in group.branches]
    if not members:
        return None
    return Level(
        draft.sources,
        tuple(lines),
        tuple(draft.pools),
        tuple(draft.same),
        edges=tuple(sorted({branch.edge for branch in members})),
        line=line,
        first=draft.first,
        slots=draft.count,
        ending=ending,
        pooled=pooled,
        bounds=bounds,
        branches=branches,
        passed=passed,
        sizes=[conv.weight.numel() for family in draft.families for conv in family.convolutions],
    )
