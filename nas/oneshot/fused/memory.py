"""What is remembered of a cell from one pass to the next: how its operations can be run, and its plans."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nas.cell import Cell
from nas.oneshot.fused.groups import Known
from nas.oneshot.fused.inputs import Inputs
from nas.oneshot.fused.plan import Plan, extent_of, make_plan, table_of
from nas.oneshot.fused.stack import type_of_maps
from nas.oneshot.fused.trust import joint, known
from nas.oneshot.mixed import MixedOp, Terms

CACHED = 2**20
"""Numbers in a stack on the CPU, at most, so that it stays in the cache from one call to the next."""
KNOWN_PLANS = 64
"""Of a cell, at most; the oldest is forgotten first."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What is remembered of one cell.

    edges: what is on each. modules: all that are on any. parts: of these and of what preprocesses the inputs,
    the modules in each. ways: how operations can be run. plans: by the structure of mixtures. captured: those
    whose tensors CUDA graphs read, and which therefore stay. inputs: how to preprocess them.
    """

    edges: list[nn.Module]
    modules: list[nn.Module]
    parts: list[tuple[nn.Module, dict[str, nn.Module | None]]]
    ways: dict[Hashable, Known] = field(default_factory=dict)
    plans: dict[Hashable, Plan] = field(default_factory=dict)
    captured: set[Plan] = field(default_factory=set)
    inputs: Inputs = field(default_factory=Inputs)

    @classmethod
    def of(cls, cell: Cell) -> Memory:
        """That of a cell; begun anew where a module in it has been replaced by another one."""
        known = _MEMORY.get(cell)
        if known is not None and all(module._modules == parts for module, parts in known.parts):
            return known
        modules = list(cell.incoming.modules())
        parts = [(module, dict(module._modules)) for module in (*modules, *cell.preprocess.modules())]
        captured = set[Plan]() if known is None else known.captured
        found = cls([op for _, _, op in cell.edges()], modules, parts, captured=captured)
        _MEMORY[cell] = found
        return found

    def plan(self, cell: Cell, terms: Sequence[Terms], states: Sequence[Tensor], *, kernels: bool) -> Plan:
        """The plan of the cell under mixtures of one structure, for states of these sizes and kinds.

        kernels: whether they may run what they know.
        """
        x = states[0]
        together = max(1, CACHED // x.numel()) if x.device.type == "cpu" else len(terms)
        table = table_of(terms)
        structure = [(t.options, t.at, *extent_of(t.row, table), t.edge is None, t.drawn) for t in terms]
        shapes = [(state.shape[1], state.shape[2], state.shape[3]) for state in states]
        alike = len({(*shape, s.requires_grad) for shape, s in zip(shapes, states, strict=True)}) == 1
        kind = (kernels, x.device, x.dtype, type_of_maps(states))
        # What entries are dropped from is left to the batched path.
        dropping = kernels and any(isinstance(op, MixedOp) and op.skip_dropout > 0 for op in self.edges)
        key = (*structure, *((*shapes, alike) if kernels else ()), dropping, together, *kind)
        if key not in self.plans:
            if len(self.plans) >= KNOWN_PLANS:
                self.plans.pop(next(iter(self.plans)))

            def way(op: nn.Module) -> Known:
                if (op, *kind) not in self.ways:
                    self.ways[op, *kind] = known(op, on=x, kernels=kernels)
                return self.ways[op, *kind]

            agree = partial(joint, on=x)
            self.plans[key] = make_plan(
                cell, terms, together, way, agree, shapes=shapes, alike=alike, device=x.device
            )
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            self.captured.add(self.plans[key])
        return self.plans[key]


_MEMORY: WeakKeyDictionary[Cell, Memory] = WeakKeyDictionary()
