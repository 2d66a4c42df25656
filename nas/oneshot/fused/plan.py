"""Which operations of a cell run together: those of one kind on edges that leave the same node."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count

import torch
from torch import Tensor, nn

from nas.cell import Cell
from nas.oneshot.fused.drafts import fitting
from nas.oneshot.fused.families import kin_of
from nas.oneshot.fused.groups import Branch, Group, Known, Layers
from nas.oneshot.fused.laying_out import lay_out
from nas.oneshot.fused.layout import Layout
from nas.oneshot.fused.rules import rule_of
from nas.oneshot.fused.stack import Stack
from nas.oneshot.fused.stages import Chain, Same, Shape
from nas.oneshot.mixed import MixedOp, Terms
from nas.ops import Zero


@dataclass(frozen=True, eq=False)
class Plan:
    """How a cell runs under all mixtures of one structure.

    edges: (src, dst, module). groups: [nodes] what runs on each node. parts: of the channels, of which one is
      computed on; 0 where this differs between edges. sizes: branches of each group that the kernels do not
      run, by its number, and last the contributions of those that they run.
    at: where their weights are in what `table_of` gives, or else in the rows of the mixture, one after the
      other, of which the last is that of what has none; edge_of: the edges.
    layout: of what the kernels run; None where they run nothing.
    """

    edges: list[tuple[int, int, nn.Module]]
    groups: list[list[Group]]
    parts: int
    sizes: list[int]
    at: list[int]
    edge_of: list[int]
    layout: Layout | None
    _tensors: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @cached_property
    def norms(self) -> list[nn.Module]:
        """The batch-norms of all that the kernels run."""
        groups = [group for own in self.groups for group in own if group.form is not None]
        return [norm for g in groups for at in (g.form.norms if g.form else []) for norm in g.pieces[at]]

    def weights(self, terms: Sequence[Terms], x: Tensor) -> Sequence[Tensor]:
        """The weights `[G]` of groups, and last of contributions; nothing where there are none at all.

        x: whose device they are on.
        """
        edges = [term.edge for term in terms]
        if all(term.row is None and term.edge is None for term in terms):
            return ()
        flat = self._rows(terms, x)
        if any(edge is not None for edge in edges):
            _, edge_of, one = self._places(x.device)
            each = torch.cat([one if edge is None else edge.view(1) for edge in edges])
            flat = flat * each.index_select(0, edge_of)
        return torch.split(flat, self.sizes)

    def chosen(self, terms: Sequence[Terms], x: Tensor) -> Sequence[Tensor]:
        """As `weights`: 1 for what was drawn, else 0; nothing where Python knows what is run."""
        if self.layout is None or not any(term.drawn for term in terms):
            return ()
        return torch.split(self._rows(terms, x).ne(0).int(), self.sizes)

    @property
    def by_kernels(self) -> bool:
        """Whether they run what they know of it, and all else has a rule, as every primitive has."""
        return self.parts > 0 and self.layout is not None and all(g.rules for own in self.groups for g in own)

    def _rows(self, terms: Sequence[Terms], x: Tensor) -> Tensor:
        """The weights of operations, without those of edges."""
        at, _, one = self._places(x.device)
        table = table_of(terms)
        if table is not None:
            return table.view(-1).index_select(0, at)
        rows = [term.row for term in terms if term.row is not None]
        return torch.cat([*rows, one]).index_select(0, at)

    def _places(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """`at`, `edge_of` and a one on a device."""
        if device not in self._tensors:
            # Of a cell in which nothing runs both are empty.
            self._tensors[device] = (
                torch.tensor(self.at, dtype=torch.int64, device=device),
                torch.tensor(self.edge_of, dtype=torch.int64, device=device),
                torch.ones(1, device=device),
            )
        return self._tensors[device]


def table_of(terms: Sequence[Terms]) -> Tensor | None:
    """What the rows of all terms are views of, as those of a supernet are; None where any is none.

    To read it whole, once for each cell, saves a call for each row: its gradient is added up by itself.
    """
    rows = [term.row for term in terms]
    table = None if rows[0] is None else rows[0]._base
    if table is None or not table.is_contiguous():
        return None
    same = (table.requires_grad, table.dtype, (1,))
    for row in rows:
        if row is None or row._base is not table or (row.requires_grad, row.dtype, row.stride()) != same:
            return None
    return table


def extent_of(row: Tensor | None, table: Tensor | None) -> tuple[int, int]:
    """How many weights a row has, and where it begins in the table that it is a view of; -1 for nothing."""
    if row is None:
        return 0, -1
    return len(row), -1 if table is None else int(row.storage_offset() - table.storage_offset())


def make_plan(
    cell: Cell,
    terms: Sequence[Terms],
    together: int,
    known: Callable[[nn.Module], Known],
    joint: Callable[[Sequence[nn.Module]], bool],
    *,
    shapes: Sequence[Shape],
    alike: bool,
    device: torch.device,
) -> Plan:
    """The plan of a cell under one structure of mixture.

    together: branches in a stack, at most. known: how an operation can be run. joint: whether kernels run
    operations of several kinds in one launch. shapes: of the inputs' maps; alike: whether those are one, and
    all or none of them need gradients.
    """
    edges = list(cell.edges())
    leaving: list[list[Branch]] = [[] for _ in range(cell.inputs + len(cell.incoming))]
    offset, idle, table = 0, False, table_of(terms)
    for edge, ((src, _, op), term) in enumerate(zip(edges, terms, strict=True)):
        ops = [op.ops[o] for o in term.options] if isinstance(op, MixedOp) else [op]
        places: list[int | None] = [None] * len(ops)
        if term.row is not None:
            length, start = extent_of(term.row, table)
            places = [(offset if table is None else start) + at for at in term.at]
            offset += length
        live = [(o, place) for o, place in zip(ops, places, strict=True) if not isinstance(o, Zero)]
        idle = idle or not live
        leaving[src] += [Branch(edge, o, place) for o, place in live]
    parts = {op.parts if isinstance(op, MixedOp) else 1 for _, _, op in edges}
    alone = 1 if parts == {1} else 0 if len(parts) > 1 or idle else parts.pop()
    groups: list[list[Group]] = []
    number = 0
    for branches in leaving:
        groups.append([])
        for group in _grouped(branches, terms, known):
            for part in group.split(together):
                groups[-1].append(replace(part, number=number))
                number += 1
    groups = _for_kernels(groups, edges, _parts_of(shapes, alone), joint)
    layout = lay_out(groups, edges, _parts_of(shapes, alone), device, alike=alike)
    left = count()
    groups = [[g if g.form is not None else replace(g, number=next(left)) for g in own] for own in groups]
    apart = [group.branches for own in groups for group in own if group.form is None]
    members = [branch for own in [*apart, layout.order if layout else ()] for branch in own]
    return Plan(
        edges,
        groups,
        alone,
        sizes=[*map(len, apart), *([len(layout.order)] if layout else [])],
        at=[offset if branch.weight is None else branch.weight for branch in members],
        edge_of=[branch.edge for branch in members],
        layout=layout,
    )


def _for_kernels(
    groups: list[list[Group]],
    edges: Sequence[tuple[int, int, nn.Module]],
    shapes: Sequence[Shape],
    joint: Callable[[Sequence[nn.Module]], bool],
) -> list[list[Group]]:
    """The groups of each node, without a form where the kernels cannot run them after all."""

    def dropped(group: Group) -> bool:
        """Whether these are identities of which entries may be dropped."""
        ops = [edges[branch.edge][2] for branch in group.branches]
        return isinstance(group.form, Same) and any(isinstance(o, MixedOp) and o.skip_dropout for o in ops)

    plain = [[replace(g, form=None) if dropped(g) else g for g in own] for own in groups]
    found = fitting(plain, edges, shapes)
    refused = {id(group) for own in found for kin in _kin(own) if not _agree(kin, joint) for group in kin}
    return [[replace(g, form=None) if id(g) in refused else g for g in own] for own in found]


def _kin(groups: Sequence[Group]) -> list[list[Group]]:
    return kin_of([group for group in groups if isinstance(group.form, Chain)])


def _agree(kin: Sequence[Group], joint: Callable[[Sequence[nn.Module]], bool]) -> bool:
    """Whether the kernels may run all of a family in one launch."""
    kinds = {tuple(rule.key for rule in group.rules): group.branches[0].op for group in kin}
    return len(kinds) == 1 or joint(list(kinds.values()))


def _parts_of(shapes: Sequence[Shape], parts: int) -> list[Shape]:
    """Of the channels that are computed on."""
    return [(channels // max(1, parts), height, width) for channels, height, width in shapes]


def _grouped(
    branches: Sequence[Branch], terms: Sequence[Terms], known: Callable[[nn.Module], Known]
) -> list[Group]:
    """Branches on one map, by kind, in the order of first appearance."""
    found: dict[Hashable, list[tuple[Branch, Known]]] = {}
    for branch in branches:
        way = known(branch.op)
        key: Hashable = id(branch.op) if way.chain is None else tuple(rule.key for _, rule in way.chain)
        found.setdefault(key, []).append((branch, way))
    groups = []
    for members in found.values():
        layers = tuple(zip(*([layer for layer, _ in k.chain or ()] for _, k in members), strict=True))
        first, own = members[0][1], tuple(branch for branch, _ in members)
        rules = tuple(rule for _, rule in first.chain or ())
        weighed = any(b.weight is not None or terms[b.edge].edge is not None for b in own)
        groups.append(Group(own, rules, layers, weighed, form=first.form))
    return groups


def outcome_of(ops: Sequence[nn.Module], x: Tensor) -> Tensor:
    """What operations of one kind make of one map together, `[B, G * C, H, W]`."""
    stack = Stack(x, len(ops), shared=True)
    chains = [chain_of(op) or () for op in ops]
    for depth, (_, rule) in enumerate(chains[0]):
        stack = rule.run([chain[depth][0] for chain in chains], stack)
    return stack.apart()


def chain_of(op: nn.Module) -> Layers | None:
    """The layers of an operation, one after the other, with their rules; None unless all have one.

    An empty sequence has no layer to say what it does, and so runs by itself.
    """
    if type(op) is nn.Sequential:
        parts = [chain_of(child) for child in op]
        known = [part for part in parts if part is not None]
        whole = len(known) == len(parts) > 0
        return tuple(layer for part in known for layer in part) if whole else None
    rule = rule_of(op)
    return None if rule is None else ((op, rule),)
