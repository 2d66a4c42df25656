"""The preprocessing of a cell's inputs: by the kernels as far as they know it, else module by module."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from nas.cell import Cell
from nas.oneshot.fused.groups import Known
from nas.oneshot.fused.rules import pieces_of
from nas.oneshot.fused.stack import type_of_maps
from nas.oneshot.fused.stages import Chain, shape_after
from nas.oneshot.fused.trust import prepared

if TYPE_CHECKING:
    from nas.oneshot.fused.kernels.preparing import Preparation

LARGEST = 2**30
"""Numbers in a map that kernels read or make, fewer than: Triton counts those of a map in 32 bits."""


@dataclass(frozen=True)
class Inputs:
    """What is remembered of the modules that preprocess the inputs of a cell.

    ways: how each can be run, by the device and types of weights and maps. preparations: of those that run
      together.
    """

    ways: dict[Hashable, Known] = field(default_factory=dict)
    preparations: dict[Hashable, Preparation] = field(default_factory=dict)

    def states(self, cell: Cell, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The preprocessed inputs, in training.

        Together run modules that make maps of one shape, of which all or none need gradients. A module that
        is hooked, whose batch-norm does not train, or whose map is too large for kernels, runs by itself.
        """
        together: dict[Hashable, list[int]] = {}
        found: dict[int, Tensor] = {}
        for at, (pre, x) in enumerate(zip(cell.preprocess, inputs, strict=True)):
            key = self._key(pre, x)
            if key is None:
                found[at] = pre(x)
            else:
                together.setdefault(key, []).append(at)
        for members in together.values():
            ops, maps = [cell.preprocess[at] for at in members], [inputs[at] for at in members]
            found |= zip(members, self._preparation(ops, maps).prepare(maps), strict=True)
        return [found[at] for at in range(len(inputs))]

    def _key(self, pre: nn.Module, x: Tensor) -> Hashable:
        """What modules that run together have in common; None of one that runs by itself."""
        way = self._way(pre, x)
        if way.form is None or any(map(hooked, pre.modules())):
            return None
        pieces = pieces_of([layer for layer, _ in way.chain or ()])
        (at,) = way.form.norms
        norm = cast(nn.BatchNorm2d, pieces[at])
        after = shape_after(way.form, pieces, (x.shape[1], x.shape[2], x.shape[3]))
        if after is None or len(x) * math.prod(after) >= LARGEST or not norm.training:
            return None
        needs = x.requires_grad or any(p.requires_grad for p in pre.parameters())
        return (*after, len(x), x.dtype, norm.eps, norm.affine, needs)

    def _way(self, pre: nn.Module, x: Tensor) -> Known:
        first = next(pre.parameters(), None)
        key = (pre, None if first is None else (first.device, first.dtype), x.dtype, type_of_maps([x]))
        if key not in self.ways:
            self.ways[key] = prepared(pre, on=x)
        return self.ways[key]

    def _preparation(self, ops: Sequence[nn.Module], maps: Sequence[Tensor]) -> Preparation:
        from nas.oneshot.fused.kernels.preparing import Preparation

        device = maps[0].device
        key = (*ops, device)
        if key not in self.preparations:
            ways = [self._way(op, x) for op, x in zip(ops, maps, strict=True)]
            layers = [[layer for layer, _ in way.chain or ()] for way in ways]
            forms = [cast(Chain, way.form) for way in ways]
            self.preparations[key] = Preparation.of(layers, forms, device)
        return self.preparations[key]


def hooked(module: nn.Module) -> bool:
    """Whether something is to happen where a module is called."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(map(bool, (*hooks, module._backward_pre_hooks)))
