"""What is remembered of a cell from one pass to the next: how its operations can be run, and its plans."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nas.space.cell import Cell
from nas.space.mixed_op import Terms
from nas.training.batched.execution_plan import Plan, extent_of, make_plan, table_of
from nas.training.batched.groups import Layers
from nas.training.batched.trust import known

CACHED = 2**20
"""Numbers in a stack on the CPU, at most, so that it stays in the cache from one call to the next."""
KNOWN_PLANS = 64
"""Of a cell, at most; the oldest is forgotten first."""


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
    plans: dict[Hashable, Plan] = field(default_factory=dict)
    captured: set[Plan] = field(default_factory=set)

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

    def plan(self, cell: Cell, terms: Sequence[Terms], x: Tensor) -> Plan:
        """The plan of the cell under mixtures of one structure, for states of the size and kind of `x`."""
        together = max(1, CACHED // x.numel()) if x.device.type == "cpu" else len(terms)
        table = table_of(terms)
        structure = [(t.options, t.at, *extent_of(t.row, table), t.edge is None) for t in terms]
        kind = (x.device, x.dtype)
        key = (*structure, together, *kind)
        if key not in self.plans:
            if len(self.plans) >= KNOWN_PLANS:
                self.plans.pop(next(iter(self.plans)))

            def way(op: nn.Module) -> Layers | None:
                if (op, *kind) not in self.ways:
                    self.ways[op, *kind] = known(op)
                return self.ways[op, *kind]

            self.plans[key] = make_plan(cell, terms, together, way)
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            self.captured.add(self.plans[key])
        return self.plans[key]


_MEMORY: WeakKeyDictionary[Cell, Memory] = WeakKeyDictionary()
