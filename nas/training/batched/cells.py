"""A cell run node by node: what leaves a node runs together, operations of one kind in one call.

Beside fewer and larger calls this saves work: what has no weights (ReLU, pools) is computed once for all
edges that leave a node, and the weight of an operation is the scale of its last batch-norm.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.space.batching import Stack, channels_last, normalise
from nas.space.cell import Cell, drop_mask
from nas.space.choosers import Zero
from nas.space.mixed_op import MixedOp, Terms
from nas.training.batched.execution_plan import (
    CellPlan,
    Layers,
    OpGroup,
    extent_of,
    make_plan,
    table_of,
    trusted_layers,
)
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
    the modules in each. ways: the layers by which operations run together, None where they do not. plans: by
    the structure of mixtures. captured: those whose tensors CUDA graphs read, and which therefore stay.
    """

    edges: list[nn.Module]
    modules: list[nn.Module]
    parts: list[tuple[nn.Module, dict[str, nn.Module | None]]]
    ways: dict[Hashable, Layers | None] = field(default_factory=dict)
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
        kind = (x.device, x.dtype)
        key = (*structure, most, *kind)
        if key not in self.plans:
            if len(self.plans) >= KNOWN_PLANS:
                self.plans.pop(next(iter(self.plans)))

            def layers_of(op: nn.Module) -> Layers | None:
                if (op, *kind) not in self.ways:
                    self.ways[op, *kind] = trusted_layers(op)
                return self.ways[op, *kind]

            self.plans[key] = make_plan(cell, terms, most, layers_of)
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
            _, src, op = into[0]
            zeros: Tensor = op(self.states[src])
            return zeros
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
