"""One pass through a cell by the kernels: level by level, node by node. Not yet run on a GPU.

Each level and each node is a node of autograd of its own, so that operations without kernels may stand
between them; so is the preprocessing of inputs (`preparing`). A single one for all cells would spare little:
of 1,298 launches and 255 calls of the library in a step of DARTS (8 cells, weights and alphas) about 80,
which add up gradients of cells' outputs and parts of gradients of weights, and copy maps to where others are.
Most other calls are of what is no cell: images, mixtures, loss, optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from nas.oneshot.fused.groups import Branch, Group
from nas.oneshot.fused.kernels import node
from nas.oneshot.fused.kernels.joining import one_of
from nas.oneshot.fused.kernels.leaving import leave
from nas.oneshot.fused.kernels.running import Seen, follow_all
from nas.oneshot.fused.kernels.slots import Active, Leavings, Slots
from nas.oneshot.fused.laying_out import lay_out
from nas.oneshot.fused.layout import Layout
from nas.oneshot.fused.stack import channels_last, type_of_maps
from nas.oneshot.fused.stages import Form


class Passage:
    """What the kernels compute of a cell in training.

    Maps are kept in the type of the states, or in that of autocast where it is on; sums are in float32. Not
    to be differentiated twice.

    layout: of the cell. states: the maps of its inputs. weights: [K] of the contributions; 1 where None.
    chosen: [K] 0 for contributions that are not computed; None where all are.
    masks: [B, 1, 1, 1] the factors of images, of edges from which some are dropped.
    """

    def __init__(
        self,
        layout: Layout,
        states: Sequence[Tensor],
        weights: Tensor | None,
        masks: Mapping[int, Tensor],
        chosen: Tensor | None = None,
    ) -> None:
        first = states[0]
        self._dtype = type_of_maps(states)
        self._layout = layout
        active = None if chosen is None else Active.of(layout, chosen)
        filled = None if active is None else active.slots
        self._slots = Slots.empty(layout, len(first), self._dtype, first.device, filled)
        self._leavings = Leavings(layout, masked=bool(masks), active=active)
        weights = layout.ones if weights is None else weights
        self._all = weights.detach()
        self._shares = node.shares(weights, self._slots, self._leavings)
        self._masks = _in_rows(masks, len(layout.targets), len(first)) if masks else None
        self._states: dict[int, Tensor] = {}
        self._tokens: dict[int, Tensor] = {}
        self._seen: list[Seen] = []

    def read_from(self, src: int) -> tuple[int, ...]:
        """The nodes whose maps `leave` reads for what leaves one; none where it is not to be asked."""
        level = self._layout.levels[src]
        return () if level is None else level.sources

    def leave(self, src: int, maps: Sequence[Tensor]) -> Tensor | None:
        """Computes what leaves a node, or all inputs, as far as the kernels know it.

        maps: `[B, C, H, W]` of the nodes that `read_from` tells. Returns the map of the node for whatever
        else reads it; None where it may as well read what it has.
        """
        level = self._layout.levels[src]
        assert level is not None
        own = [channels_last(x.to(self._dtype)) for x in maps]
        x = own[0] if len(own) == 1 else one_of(own)
        number = src - (len(self._layout.levels) - len(self._layout.sums))
        node = None if number < 0 else number
        passed, tokens, seen = leave(level, x, self._slots, self._leavings, self._all, node=node)
        self._tokens |= dict(zip(level.edges, tokens, strict=True))
        rows = x.detach().permute(0, 2, 3, 1).reshape(len(own), -1, x.shape[1])
        self._states |= dict(zip(level.sources, rows, strict=True))
        self._seen += seen
        return passed if len(own) == 1 and own[0] is maps[0] else None

    def node(self, number: int, rest: Tensor | None) -> Tensor | None:
        """The sum in a computed node of all that leads there, None where nothing does.

        rest: the sum of what the kernels do not know, masked already.
        """
        own = self._layout.sums[number]
        if own.start == own.stop:
            return rest
        return node.total(
            number,
            self._slots,
            self._leavings,
            self._all[own.start : own.stop],
            share=self._shares[number],
            states=[self._states[src] for src in own.sources],
            masks=self._masks,
            rest=rest,
            tokens=[self._tokens[edge] for edge in own.edges],
        )

    def follow(self) -> None:
        """Running statistics go towards those that were seen; once, at the end."""
        follow_all(self._seen, self._layout, self._slots.norm)


def apart(groups: Sequence[Group], x: Tensor, weights: Tensor) -> Tensor:
    """What each of G operations makes of a map `[B, C, H, W]`, times its weight: `[G, B, C', H', W']`.

    groups: as from `alike`, of G operations in all whose edges are 0, 1, ... in order.
    """
    edges = [(0, 1 + branch.edge, None) for group in groups for branch in group.branches]
    _, channels, height, width = x.shape
    layout = lay_out([[*groups], *[[] for _ in edges]], edges, [(channels, height, width)], x.device)
    assert layout is not None
    passage = Passage(layout, [x], weights, {})
    passage.leave(0, [x])
    maps = [cast(Tensor, passage.node(number, None)) for number in range(len(edges))]
    passage.follow()
    return torch.stack(maps)


def alike(
    ops: Sequence[nn.Module], layers: Sequence[Sequence[nn.Module]], form: Form, *, first: int = 0
) -> Group:
    """A group of operations of one form, each on an edge of its own, from `first` on. layers: [layers][G]."""
    branches = tuple(Branch(edge, op, edge) for edge, op in enumerate(ops, start=first))
    return Group(branches, (), tuple(map(tuple, layers)), weighed=True, number=first, form=form)


def _in_rows(masks: Mapping[int, Tensor], edges: int, images: int) -> Tensor:
    """[edges, B]: 1 where nothing is dropped."""
    whole = next(iter(masks.values())).new_ones(images)
    rows = [masks[edge].view(-1) if edge in masks else whole for edge in range(edges)]
    return torch.stack(rows).float()
