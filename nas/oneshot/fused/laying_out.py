"""How the maps of a cell are laid out for the kernels; see `layout` for what comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from nas.oneshot.fused.drafts import Draft, Edges, drafts_of, shape_made
from nas.oneshot.fused.families import Family, families_of, kernel_kind
from nas.oneshot.fused.groups import Branch, Group
from nas.oneshot.fused.kernels.tiles import tickets_of
from nas.oneshot.fused.layout import Layout, Level, Line, Sum
from nas.oneshot.fused.stages import Shape


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
    shape = next((shape_made(group, shapes[src]) for src in range(inputs) for group in leaving[src]), None)
    if shape is None:
        return None
    drafts = drafts_of(leaving, inputs, alike=alike)
    terms: list[_Contribution] = []
    sums = []
    for dst in range(inputs, len(groups)):
        into = _into(dst, edges, drafts)
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
    slots, widest = drafts[-1].first + drafts[-1].count, _widest(drafts, shape)
    # For each tile of channels of all operations of which a launch may make sums.
    tickets = max(len(terms), slots) * tickets_of(widest)
    return Layout(
        shape,
        widest,
        slots,
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
        tickets=torch.zeros(tickets, dtype=torch.int32, device=device),
    )


def lay_out_each(groups: Sequence[Group], device: torch.device) -> Level:
    """A level of groups of chains of one stage, of which each is a line and reads a map of its own."""
    families = [families_of([group])[0] for group in groups]
    stops = [*accumulate(len(family.branches) for family in families)]
    spans = [((stop - len(family.branches), stop),) for family, stop in zip(families, stops, strict=True)]
    branches = [branch for family in families for branch in family.branches]
    slots = {id(branch): [slot] for slot, branch in enumerate(branches)}
    draft = Draft(tuple(range(len(groups))), groups, families, [], [], 0, [*spans], slots, len(branches))
    places = {id(branch): place for place, branch in enumerate(branches)}
    (level,) = _levels([draft], places, iter(_packed(_numbers(draft, places), device)))
    assert level is not None
    return level


def _widest(drafts: Sequence[Draft], shape: Shape) -> int:
    """Channels of maps of this shape and of those before them, at most."""
    inner = [conv.out_channels for own in drafts for family in own.families for conv in family.convolutions]
    return max([shape[0], *inner])


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


def _into(dst: int, edges: Edges, drafts: Sequence[Draft]) -> list[_Contribution]:
    """What the kernels bring into a node, that from slots first."""
    found = []
    for draft in drafts:
        for group in draft.groups:
            assert group.form is not None
            for branch in group.branches:
                if edges[branch.edge][1] == dst:
                    slots = draft.slots.get(id(branch), [])
                    found.append(_Contribution(branch, slots, bool(group.form.norms)))
    return sorted(found, key=lambda term: not term.slots)


def _rows(drafts: Sequence[Draft], places: dict[int, int]) -> list[list[int]]:
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


def _numbers(draft: Draft, places: dict[int, int]) -> list[list[int]]:
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
    drafts: Sequence[Draft], places: dict[int, int], packed: Iterator[Tensor]
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
    draft: Draft,
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
