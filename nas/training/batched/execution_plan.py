"""Which operations of a cell run together: those of one kind on edges that leave the same node.

A kind is tried once before it is used: what runs together must give what each gives by itself.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from nas.devices import exact
from nas.seeding import torch_rng
from nas.space.batching import Rule, Stack, channels_last, rule_of
from nas.space.cell import Cell
from nas.space.choosers import Zero
from nas.space.mixed_op import MixedOp, Terms
from nas.training.optimizer import gradients

Layers = tuple[tuple[nn.Module, Rule], ...]
"""The layers of an operation, one after the other, with their rules."""
TOLERANCE = {("cpu", torch.float64): 1e-9, ("cpu", torch.float32): 1e-3}
"""Largest relative difference, in the norm, of outputs and gradients that run together from those apart."""
OTHERWISE = 1e-2
"""On other devices."""


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


def make_plan(
    cell: Cell,
    terms: Sequence[Terms],
    most: int,
    layers_of: Callable[[nn.Module], Layers | None],
) -> CellPlan:
    """The plan of a cell under one structure of mixture.

    most: branches in a stack. layers_of: the layers by which an operation runs with its like;
    None where it runs by itself.
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
    numbers = itertools.count()
    groups = [
        [
            replace(part, number=next(numbers))
            for group in _grouped(branches, terms, layers_of)
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


def _grouped(
    branches: Sequence[Branch], terms: Sequence[Terms], layers_of: Callable[[nn.Module], Layers | None]
) -> list[OpGroup]:
    """Branches on one map, by kind, in the order of first appearance."""
    found: dict[Hashable, list[tuple[Branch, Layers]]] = {}
    for branch in branches:
        chain = layers_of(branch.op)
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


# -- whether operations may run together ------------------------------------------------------------------

_TRIED: dict[Hashable, bool] = {}


def trusted_layers(op: nn.Module) -> Layers | None:
    """The layers by which an operation runs together with others of its kind; None where it runs by itself.

    Each kind is tried once on each device, on random maps: two of it together have to be what each is alone;
    where one fails, a warning says so.
    """
    chain, first = chain_of(op), next(itertools.chain(op.parameters(), op.buffers()), None)
    if chain is None or first is None or first.is_meta:
        return chain
    key = (first.device.type, first.dtype, *(rule.key for _, rule in chain))
    if key not in _TRIED:
        problem = _problem(op, first)
        _TRIED[key] = problem is None
        if problem is not None:
            names = ", ".join(type(layer).__name__ for layer, _ in chain)
            warnings.warn(
                f"execution: {names} on {first.device} is not batched what it is alone ({problem}); "
                f"such operations do not run batched",
                stacklevel=2,
            )
    return chain if _TRIED[key] else None


def _problem(op: nn.Module, like: Tensor) -> str | None:
    """What differs between two copies of an operation apart and together."""
    generator = torch_rng(0, "trust")

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like)

    ops = [copy.deepcopy(op).train() for _ in range(2)]
    with torch.no_grad():
        for parameter in ops[1].parameters():
            parameter.add_(0.1 * normal(*parameter.shape))
    x = channels_last(normal(4, _channels(op), 6, 5)).requires_grad_()
    scale = (1 + 0.5 * normal(2)).requires_grad_()
    inputs = [x, scale, *(p.requires_grad_() for o in ops for p in o.parameters())]
    try:
        with _apart_from_all(like.device):
            alone = torch.stack([weight * o(x) for o, weight in zip(ops, scale, strict=True)])
            along = normal(*alone.shape)
            expected = [alone, *gradients((alone * along).sum(), inputs)]
            maps = run_together(ops, x).chunk(2, dim=1)
            joint = torch.stack([weight * y for weight, y in zip(scale, maps, strict=True)])
            found = [joint, *gradients((joint * along).sum(), inputs)]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return _difference(expected, found, TOLERANCE.get((like.device.type, like.dtype), OTHERWISE))


def run_together(ops: Sequence[nn.Module], x: Tensor) -> Tensor:
    """What operations of one kind make of one map together, `[B, G * C, H, W]`."""
    stack = Stack(x, len(ops), shared=True)
    chains = [chain_of(op) or () for op in ops]
    for depth, (_, rule) in enumerate(chains[0]):
        stack = rule.run([chain[depth][0] for chain in chains], stack)
    return stack.apart()


@contextmanager
def _apart_from_all(device: torch.device) -> Iterator[None]:
    """Runs a block as if nothing ran around it: gradients on, no autocast, nothing kept for a checkpoint."""
    with (
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
        exact(),
    ):
        yield


@torch.no_grad()
def _difference(expected: Sequence[Tensor], found: Sequence[Tensor], limit: float) -> str | None:
    # A gradient that is nothing but rounding, as before a norm of one channel, is judged by the others' size.
    floor = 0.1 * max(a.norm().item() for a in expected)
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        error = ((a - b).norm() / a.norm().clamp_min(floor)).item()
        if not error <= limit:
            what = "output" if i == 0 else "gradient of the input" if i == 1 else "gradient of a weight"
            return f"the {what} differs by {error:.1e} of its norm"
    return None


def _channels(op: nn.Module) -> int:
    """Channels that an operation reads, by its first weights."""
    for module in op.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, nn.BatchNorm2d):
            return module.num_features
    return 4
