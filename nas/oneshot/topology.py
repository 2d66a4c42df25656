"""Where mixed operations lie in a network: in no other one, and on the edges into a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from nas.space.cell import Cell
from nas.space.mixed_op import MixedOp


def outermost(network: nn.Module) -> list[str]:
    """Paths of the mixed operations that lie in no other one."""
    paths: list[str] = []
    for path, module in network.named_modules():
        if isinstance(module, MixedOp) and not any(path.startswith(f"{outer}.") for outer in paths):
            paths.append(path)
    return paths


def into_nodes(network: nn.Module, names: Sequence[str]) -> list[list[int]]:
    """The decisions, by position, on the edges into each node of each kind of cell; each in one group."""
    position = {name: i for i, name in enumerate(names)}
    found: list[list[int]] = []
    seen: set[int] = set()
    for cell in network.modules():
        for incoming in cell.incoming if isinstance(cell, Cell) else ():
            ops = [op for op in cast(nn.ModuleList, incoming) if isinstance(op, MixedOp)]
            members = list(dict.fromkeys(position[op.decision] for op in ops))
            if members and seen.isdisjoint(members):
                found.append(members)
                seen.update(members)
    return found
