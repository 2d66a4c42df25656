"""Batched execution: a cell run node by node; operations of one kind that leave a node run in one call.

Beside fewer and larger calls this saves work: what has no weights (ReLU, pools) is computed once for all
edges that leave a node, and the weight of an operation is the scale of its last batch-norm. `run` runs a
cell by a `CellPlan`, which says once for each structure of mixture which of its operations run together.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.space.batching import Rule, Stack, channels_last, normalise, rule_of
from nas.space.cell import Cell, drop_mask
from nas.space.choosers import Zero
from nas.space.mixed_op import MixedOp, Terms
from nas.training.recipe import Execution

DEVICES = ("cpu", "cuda")
"""Where operations run together unless asked otherwise."""
CACHED = 2**20
"""Numbers in a stack on the CPU, at most, so that it stays in the cache from one call to the next."""
KNOWN_PLANS = 64
"""Of a cell, at most; the oldest is forgotten first."""


def resolve(wanted: Execution, device: torch.device) -> Execution:
    """`plain` or `batched`, as wanted; `auto` is the one that is faster on the device."""
    if wanted != "auto":
        return wanted
    return "batched" if device.type in DEVICES else "plain"


def explain(device: torch.device) -> str:
    """Which way cells run on a device unless another is asked for, and why."""
    if device.type not in DEVICES:
        return f"plain: one operation after the other, since nothing else was tried on {device.type}"
    together = "batched: operations of one kind that leave a node in one call, channels last"
    if device.type != "cuda":
        return f"{together}, float32"
    return f"{together}, bfloat16, steps as CUDA graphs where they can be"


def execute_cells(network: nn.Module, wanted: Execution, device: torch.device) -> None:
    """Makes all cells of a network run so."""
    way = run if resolve(wanted, device) == "batched" else None
    for cell in network.modules():
        if isinstance(cell, Cell):
            cell.execute = way


def run(cell: Cell, inputs: list[Tensor]) -> list[Tensor]:
    """The maps of the computed nodes from those of the inputs, as `Cell.plain` gives them.

    A cell runs plainly where a module on an edge is hooked, where only some edges compute on a part of the
    channels, and where maps are no images (signals `[B, C, L]`, tokens). Deviation: dropout on identities
    (`MixedOp.skip_dropout`) draws in another order.
    """
    memory = Memory.of(cell)
    if any(map(_hooked, memory.modules)):
        return cell.plain(inputs)
    terms = [op.terms() if isinstance(op, MixedOp) else Terms((0,)) for op in memory.edges]
    states = cell.preprocessed(inputs)
    if any(state.ndim != 4 for state in states):
        return cell.computed(states)
    plan = memory.plan(cell, terms, states[0])
    return _Run(cell, plan, terms, states).nodes() if plan.parts else cell.computed(states)


def _hooked(module: nn.Module) -> bool:
    """Whether something is to happen where a module is called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(map(bool, (*hooks, module._backward_pre_hooks)))


@dataclass(frozen=True, eq=False)
class Memory:
    """What is remembered of one cell.

    edges: what is on each. modules: all that are on any. parts: of these and of what preprocesses the inputs,
    the modules in each. plans: by the structure of mixtures. captured: those whose tensors CUDA graphs read,
    and which therefore stay.
    """

    edges: list[nn.Module]
    modules: list[nn.Module]
    parts: list[tuple[nn.Module, dict[str, nn.Module | None]]]
    plans: dict[Hashable, CellPlan] = field(default_factory=dict)
    captured: set[CellPlan] = field(default_factory=set)

    @classmethod
    def of(cls, cell: Cell) -> Memory:
        """That of a cell; begun anew where a module in it has been replaced by another one."""
        known = _MEMORY.get(cell)
        if known is not None and all(module._modules == parts for module, parts in known.parts):
            return known
        modules = list(cell.incoming.modules())
        parts = [(module, dict(module._modules)) for module in (*modules, *cell.preprocess.modules())]
        captured = set[CellPlan]() if known is None else known.captured
        found = cls([op for _, _, op in cell.edges()], modules, parts, captured=captured)
        _MEMORY[cell] = found
        return found

    def plan(self, cell: Cell, terms: Sequence[Terms], x: Tensor) -> CellPlan:
        """The plan of the cell under mixtures of one structure, for states of the size and kind of `x`."""
        most = max(1, CACHED // x.numel()) if x.device.type == "cpu" else len(terms)
        table = table_of(terms)
        structure = [(t.options, t.at, *extent_of(t.row, table), t.edge is None) for t in terms]
        key = (*structure, most)
        if key not in self.plans:
            if len(self.plans) >= KNOWN_PLANS:
                self.plans.pop(next(iter(self.plans)))
            self.plans[key] = make_plan(cell, terms, most)
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            self.captured.add(self.plans[key])
        return self.plans[key]


_MEMORY: WeakKeyDictionary[Cell, Memory] = WeakKeyDictionary()


class _Sum:
    """A sum of maps; adds in place to what is its own."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self._own = False

    def add(self, x: Tensor) -> None:
        if self.total is None:
            self.total = x
        elif self._own and self.total.dtype == x.dtype:
            self.total.add_(x)
        else:
            self.total, self._own = self.total + x, True


class _Run:
    """One pass through a cell."""

    def __init__(self, cell: Cell, plan: CellPlan, terms: Sequence[Terms], states: list[Tensor]) -> None:
        self.cell, self.plan, self.terms = cell, plan, terms
        self.states = [channels_last(state) for state in states]
        self.weights = plan.weights(terms, states[0])
        self.totals = [_Sum() for _ in cell.incoming]
        self.masks: dict[int, Tensor] = {}
        self.unseen: dict[tuple[int, torch.Size], Tensor] = {}
        if cell.drops:
            for edge, (_, _, op) in enumerate(plan.edges):
                if not isinstance(op, Zero | nn.Identity):
                    self.masks[edge] = drop_mask(states[0], cell.drop_path)

    def nodes(self) -> list[Tensor]:
        inputs = self.cell.inputs
        for src in range(inputs + len(self.totals)):
            if src >= inputs:
                self.states.append(self._node(src))
            if self.plan.groups[src]:
                self._leave(src)
        return self.states[inputs:]

    def _node(self, dst: int) -> Tensor:
        total = self.totals[dst - self.cell.inputs].total
        into = [(edge, src, op) for edge, (src, node, op) in enumerate(self.plan.edges) if node == dst]
        if total is None:  # nothing but zeros leads here
            _, src, op = into.pop(0)
            total = op(self.states[src])
        for term in (self.terms[edge] for edge, _, _ in into):
            if term.rest is not None:
                total = total + (term.rest if term.edge is None else term.edge * term.rest)
        if self.plan.parts == 1:
            return channels_last(total)
        rest = _Sum()
        for edge, src, _ in into:
            x, weight = self._unseen(src, total), self.terms[edge].edge
            rest.add(self._masked(edge, x if weight is None else weight * x))
        assert rest.total is not None
        return _interleaved(total, rest.total, self.plan.parts)

    def _unseen(self, src: int, like: Tensor) -> Tensor:
        """The channels of a state that are not computed on, in the size of a map."""
        key = (src, like.shape[2:])
        if key not in self.unseen:
            x = self.states[src]
            x = x[:, x.shape[1] // self.plan.parts :]
            self.unseen[key] = x if x.shape[2:] == like.shape[2:] else F.max_pool2d(x, 2, 2, ceil_mode=True)
        return self.unseen[key]

    def _leave(self, src: int) -> None:
        """Adds to the later nodes what the edges that leave a node carry there."""
        x, parts = self.states[src], self.plan.parts
        if parts > 1:  # the channels that are computed on
            x = channels_last(x[:, : x.shape[1] // parts])
        known: dict[Hashable, Tensor] = {}
        apart: dict[tuple[int, ...], _Sum] = {}
        shared: dict[tuple[int, ...], list[tuple[Tensor, Tensor | None]]] = {}
        for group in self.plan.groups[src]:
            weights = self.weights[group.number] if group.weighed else None
            edges = tuple(branch.edge for branch in group.branches)
            if self._drops(group):
                self._add(edges, self._dropped(group, x, weights))
                continue
            stack, weights = _outcome(group, x, weights, known)
            if stack.shared:
                shared.setdefault(edges, []).append((stack.x, weights))
            else:
                apart.setdefault(edges, _Sum()).add(_scaled(stack, weights))
        for edges, total in apart.items():
            assert total.total is not None
            self._add(edges, total.total.chunk(len(edges), dim=1))
        for edges, terms in shared.items():
            self._add(edges, _mixed(terms, len(edges)))

    def _add(self, edges: Sequence[int], maps: Sequence[Tensor]) -> None:
        """Adds what each edge carries, or a part of it; paths are dropped as a whole, image by image."""
        for edge, x in zip(edges, maps, strict=True):
            self.totals[self.plan.edges[edge][1] - self.cell.inputs].add(self._masked(edge, x))

    def _masked(self, edge: int, x: Tensor) -> Tensor:
        """What an edge carries, without the images that are dropped from it."""
        mask = self.masks.get(edge)
        return x if mask is None else x * mask

    def _drops(self, group: OpGroup) -> bool:
        """Whether these are identities of which entries are dropped."""
        op, edge = group.branches[0].op, self.plan.edges[group.branches[0].edge][2]
        dropped = isinstance(edge, MixedOp) and edge.skip_dropout is not None
        return dropped and self.cell.training and isinstance(op, nn.Identity)

    def _dropped(self, group: OpGroup, x: Tensor, weights: Tensor | None) -> list[Tensor]:
        """The map of each identity with its own entries dropped."""
        edges = [self.plan.edges[branch.edge][2] for branch in group.branches]
        maps = [edge.dropped(x) for edge in edges if isinstance(edge, MixedOp)]
        return maps if weights is None else [w * y for w, y in zip(weights, maps, strict=True)]


def _outcome(
    group: OpGroup, x: Tensor, weights: Tensor | None, known: dict[Hashable, Tensor]
) -> tuple[Stack, Tensor | None]:
    """What a group makes of a map, and the weights that it has not been multiplied by.

    known: what layers without weights have made of this map so far, by the keys of all of them.
    """
    if not group.rules:
        y: Tensor = group.branches[0].op(x)
        return Stack(y, 1, shared=False), weights
    stack = Stack(x, len(group.branches), shared=True)
    pure: tuple[Hashable, ...] = ()
    for depth, (rule, layers) in enumerate(zip(group.rules, group.layers, strict=True)):
        if rule.pure and len(pure) == depth:
            pure = (*pure, rule.key)
            if pure not in known:
                known[pure] = rule.run(layers, stack).x
            stack = Stack(known[pure], stack.groups, shared=True)
        elif depth == len(group.rules) - 1 and rule.run is normalise and not stack.shared:
            return normalise(layers, stack, weights), None
        else:
            stack = rule.run(layers, stack)
    return stack, weights


def _scaled(stack: Stack, weights: Tensor | None) -> Tensor:
    """`[B, G * C, H, W]` with each operation multiplied by its weight."""
    if weights is None:
        return stack.x
    channels = stack.x.shape[1] // stack.groups
    each = weights.to(stack.x.dtype).unsqueeze(1).expand(-1, channels).reshape(1, -1, 1, 1)
    return stack.x * each


def _mixed(terms: Sequence[tuple[Tensor, Tensor | None]], edges: int) -> Sequence[Tensor]:
    """For each edge the sum of maps that all edges see, weighed as each does: one product of matrices."""
    if all(weights is None for _, weights in terms):
        total = terms[0][0] if len(terms) == 1 else torch.stack([x for x, _ in terms]).sum(0)
        return [total] * edges
    first = terms[0][0]
    rows = [weights if weights is not None else first.new_ones(edges) for _, weights in terms]
    if len(terms) == edges == 1:
        return [rows[0].to(first.dtype) * first]
    maps = torch.stack([x.permute(0, 2, 3, 1) for x, _ in terms])
    product = torch.stack(rows).to(first.dtype).T @ maps.flatten(1)
    return [x.permute(0, 3, 1, 2) for x in product.view(edges, *maps.shape[1:]).unbind()]


def _interleaved(seen: Tensor, rest: Tensor, parts: int) -> Tensor:
    """The channels of `nas.space.mixed_op.shuffled`, last in memory."""
    x = torch.cat([seen.permute(0, 2, 3, 1), rest.permute(0, 2, 3, 1)], dim=-1)
    return torch.unflatten(x, -1, (parts, -1)).transpose(-1, -2).flatten(-2).permute(0, 3, 1, 2)


# -- which operations run together --------------------------------------------------------------------------

Layers = tuple[tuple[nn.Module, Rule], ...]
"""The layers of an operation, one after the other, with their rules."""


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
class OpGroup:
    """Branches that run as one, all on the same map.

    rules: [layers]; none where the operations have no rule, so that there is one branch that runs by itself.
    layers: [layers][G]. weighed: whether any has a weight. number: its position in the cell.
    """

    branches: tuple[Branch, ...]
    rules: tuple[Rule, ...]
    layers: tuple[tuple[nn.Module, ...], ...]
    weighed: bool
    number: int = 0

    def split(self, size: int) -> Iterator[OpGroup]:
        """The same in groups of at most so many branches; whole, where all of them make the same map."""
        if self.rules and all(rule.shares for rule in self.rules):
            yield self
            return
        for start in range(0, len(self.branches), size):
            part = slice(start, start + size)
            layers = tuple(layer[part] for layer in self.layers)
            yield replace(self, branches=self.branches[part], layers=layers)


@dataclass(frozen=True, eq=False)
class CellPlan:
    """How a cell runs under all mixtures of one structure.

    edges: (src, dst, module). groups: [nodes] what runs on each node. parts: of the channels, of which one is
      computed on; 0 where this differs between edges. sizes: branches of each group, by its number.
    at: where their weights are in what `table_of` gives, or else in the rows of the mixture, one after the
      other, of which the last is that of what has none; edge_of: the edges.
    """

    edges: list[tuple[int, int, nn.Module]]
    groups: list[list[OpGroup]]
    parts: int
    sizes: list[int]
    at: list[int]
    edge_of: list[int]
    _tensors: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def weights(self, terms: Sequence[Terms], x: Tensor) -> Sequence[Tensor]:
        """The weights `[G]` of groups; nothing where there are none at all.

        x: whose device they are on.
        """
        edges = [term.edge for term in terms]
        if all(term.row is None and term.edge is None for term in terms):
            return ()
        at, edge_of, one = self._places(x.device)
        table = table_of(terms)
        if table is not None:
            flat = table.view(-1).index_select(0, at)
        else:
            rows = [term.row for term in terms if term.row is not None]
            flat = torch.cat([*rows, one]).index_select(0, at)
        if any(edge is not None for edge in edges):
            each = torch.cat([one if edge is None else edge.view(1) for edge in edges])
            flat = flat * each.index_select(0, edge_of)
        return torch.split(flat, self.sizes)

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


def make_plan(cell: Cell, terms: Sequence[Terms], most: int) -> CellPlan:
    """The plan of a cell under one structure of mixture. most: branches in a stack."""
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
    numbers = itertools.count()
    groups = [
        [
            replace(part, number=next(numbers))
            for group in _grouped(branches, terms)
            for part in group.split(most)
        ]
        for branches in leaving
    ]
    members = [branch for own in groups for group in own for branch in group.branches]
    return CellPlan(
        edges,
        groups,
        parts=1 if parts == {1} else 0 if len(parts) > 1 or idle else parts.pop(),
        sizes=[len(group.branches) for own in groups for group in own],
        at=[offset if branch.weight is None else branch.weight for branch in members],
        edge_of=[branch.edge for branch in members],
    )


def _grouped(branches: Sequence[Branch], terms: Sequence[Terms]) -> list[OpGroup]:
    """Branches on one map, by kind, in the order of first appearance."""
    found: dict[Hashable, list[tuple[Branch, Layers]]] = {}
    for branch in branches:
        chain = chain_of(branch.op)
        key: Hashable = id(branch.op) if chain is None else tuple(rule.key for _, rule in chain)
        found.setdefault(key, []).append((branch, chain or ()))
    groups = []
    for members in found.values():
        layers = tuple(zip(*([layer for layer, _ in chain] for _, chain in members), strict=True))
        own, rules = tuple(branch for branch, _ in members), tuple(rule for _, rule in members[0][1])
        weighed = any(b.weight is not None or terms[b.edge].edge is not None for b in own)
        groups.append(OpGroup(own, rules, layers, weighed))
    return groups


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
