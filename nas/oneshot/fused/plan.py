"""Which operations of a cell run together: those of one kind on edges that leave the same node."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nas.cell import Cell
from nas.oneshot.fused.rules import Rule, rule_of
from nas.oneshot.fused.stack import Stack
from nas.oneshot.fused.stages import Stage
from nas.oneshot.mixed import MixedOp, Terms
from nas.ops import Zero

Chain = tuple[tuple[nn.Module, Rule], ...]


@dataclass(frozen=True)
class Known:
    """How an operation can be run together with others of its kind.

    chain: its layers with their rules; None where it runs by itself. stages: what the kernels take it for.
    """

    chain: Chain | None
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Branch:
    """One operation on one edge.

    edge: its position among the edges of the cell. weight: where its weight is among all rows of the mixture,
      one after the other; None where it has none.
    """

    edge: int
    op: nn.Module
    weight: int | None


@dataclass(frozen=True)
class Group:
    """Branches that run as one, all on the same map.

    rules: [layers]; none where the operations have no rule, so that there is one branch that runs by itself.
    layers: [layers][G]. weighed: whether any has a weight. number: its position in the cell. stages: what the
    kernels take it for; none where they run none of it.
    """

    branches: tuple[Branch, ...]
    rules: tuple[Rule, ...]
    layers: tuple[tuple[nn.Module, ...], ...]
    weighed: bool
    number: int = 0
    stages: tuple[Stage, ...] = ()

    def split(self, size: int) -> Iterator[Group]:
        """The same in groups of at most so many branches; whole, where all of them make the same map."""
        if self.rules and all(rule.shares for rule in self.rules):
            yield self
            return
        for start in range(0, len(self.branches), size):
            part = slice(start, start + size)
            yield replace(
                self, branches=self.branches[part], layers=tuple(layer[part] for layer in self.layers)
            )


@dataclass(frozen=True, eq=False)
class Plan:
    """How a cell runs under all mixtures of one structure.

    edges: (src, dst, module). groups: [nodes] what runs on each node. parts: of the channels, of which one is
      computed on; 0 where this differs between edges. sizes: branches of each group.
    at: where their weights are, the last being that of what has none; edge_of: the edges.
    """

    edges: list[tuple[int, int, nn.Module]]
    groups: list[list[Group]]
    parts: int
    sizes: list[int]
    at: list[int]
    edge_of: list[int]
    _tensors: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def weights(self, terms: Sequence[Terms], x: Tensor) -> Sequence[Tensor]:
        """The weights `[G]` of each group; empty where there are none at all. x: whose device they are on."""
        rows = [term.row for term in terms if term.row is not None]
        edges = [term.edge for term in terms]
        if not rows and all(edge is None for edge in edges):
            return ()
        kind = rows[0] if rows else x
        one = kind.new_ones(1)
        if x.device not in self._tensors:
            self._tensors[x.device] = (
                torch.tensor(self.at, device=x.device),
                torch.tensor(self.edge_of, device=x.device),
            )
        at, edge_of = self._tensors[x.device]
        flat = torch.cat([*rows, one]).index_select(0, at)
        if any(edge is not None for edge in edges):
            each = torch.cat([one if edge is None else edge.view(1) for edge in edges])
            flat = flat * each.index_select(0, edge_of)
        return torch.split(flat, self.sizes)


def make_plan(cell: Cell, terms: Sequence[Terms], together: int, known: Callable[[nn.Module], Known]) -> Plan:
    """The plan of a cell under one structure of mixture.

    together: branches in a stack, at most. known: how an operation can be run.
    """
    edges = list(cell.edges())
    leaving: list[list[Branch]] = [[] for _ in range(cell.inputs + len(cell.incoming))]
    offset, idle = 0, False
    for edge, ((src, _, op), term) in enumerate(zip(edges, terms, strict=True)):
        ops = [op.ops[o] for o in term.options] if isinstance(op, MixedOp) else [op]
        places = [offset + at for at in term.at] if term.row is not None else [None] * len(ops)
        offset += 0 if term.row is None else len(term.row)
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
    everything = [group for groups_of_node in groups for group in groups_of_node]
    members = [branch for group in everything for branch in group.branches]
    return Plan(
        edges,
        groups,
        alone,
        sizes=[len(group.branches) for group in everything],
        at=[offset if branch.weight is None else branch.weight for branch in members],
        edge_of=[branch.edge for branch in members],
    )


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
        groups.append(Group(own, rules, layers, weighed, stages=first.stages))
    return groups


def outcome_of(ops: Sequence[nn.Module], x: Tensor) -> Tensor:
    """What operations of one kind make of one map together, `[B, G * C, H, W]`."""
    stack = Stack(x, len(ops), shared=True)
    chains = [chain_of(op) or () for op in ops]
    for depth, (_, rule) in enumerate(chains[0]):
        stack = rule.run([chain[depth][0] for chain in chains], stack)
    return stack.apart()


def chain_of(op: nn.Module) -> Chain | None:
    """The layers of an operation, one after the other, with their rules; None unless all have one."""
    if type(op) is nn.Sequential:
        parts = [chain_of(child) for child in op]
        known = [part for part in parts if part is not None]
        return None if len(known) < len(parts) else tuple(layer for part in known for layer in part)
    rule = rule_of(op)
    return None if rule is None else ((op, rule),)
