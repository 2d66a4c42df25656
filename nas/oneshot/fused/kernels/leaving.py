"""All operations that leave a node as one node of autograd, up to their last batch-norm.

Their maps go to slots, where `node` adds them up. What autograd sees of an edge is a *token*: it has the
shape of a map but no numbers, and shows that the gradient of the node that the edge leads to has been left
where all operations find it. So no gradient is copied for each of them. Not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nas.oneshot.fused.groups import Group
from nas.oneshot.fused.kernels import chain, launch
from nas.oneshot.fused.kernels import mixing_launch as mixing
from nas.oneshot.fused.kernels.chain import Kept, Work
from nas.oneshot.fused.kernels.maps import Norm, Window
from nas.oneshot.fused.kernels.mixing_launch import Mixing, Returned
from nas.oneshot.fused.kernels.slots import Active, Leavings, Slots
from nas.oneshot.fused.layout import Level
from nas.oneshot.fused.stages import Chain, Pool

Seen = tuple[Sequence[nn.BatchNorm2d], Norm, Tensor | None]
"""Batch-norms, and the statistics of what they have seen: [G, C], or [1, C] where all have seen the same.

Then which of them have seen anything, [G]; None where all have.
"""


def leave(
    level: Level, x: Tensor, slots: Slots, leavings: Leavings, weights: Tensor
) -> tuple[tuple[Tensor, ...], list[Seen]]:
    """Fills in the slots of a level from a map `[B, C, H, W]`, channels last.

    weights: of all contributions of the cell. Returns the tokens of the level's edges, and what running
    statistics have to follow.
    """
    task = _Task(level, slots, leavings, weights, [])
    stacks = [taps for group in level.chains for taps in chain.by_taps(group)]
    tokens = _Leaving.apply(x, task, *stacks)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, ...], tokens), _seen(level, slots, task.inner, leavings)


@dataclass(frozen=True)
class _Task:
    """One run of a level. inner: filled in with the statistics of each chain's norms but the last."""

    level: Level
    slots: Slots
    leavings: Leavings
    weights: Tensor
    inner: list[tuple[Norm, ...]]


def _seen(level: Level, slots: Slots, inner: Sequence[tuple[Norm, ...]], leavings: Leavings) -> list[Seen]:
    """The batch-norms of a level. inner: of each chain, the statistics of all norms but the last."""
    found: list[Seen] = []
    on = [_chosen(leavings, places) for places in _places(level)]
    groups = (*level.chains, *level.pools)
    for group, (start, stop), before, own in zip(
        groups, level.spans, [*inner, *[()] * len(level.pools)], on, strict=True
    ):
        assert group.form is not None
        norms = [cast(Sequence[nn.BatchNorm2d], group.layers[at]) for at in group.form.norms]
        last = slots.norm.part(level.first + start, level.first + stop)
        # A pool may have no norm.
        found += [(rows, norm, own) for rows, norm in zip(norms, [*before, last], strict=False)]
    return found


def _places(level: Level) -> list[Tensor]:
    """Which contributions the branches of each chain are, then of each pool."""
    pooled = torch.split(level.pooled, [len(group.branches) for group in level.pools])
    return [*level.chained, *(pooled if level.pools else ())]


def _chosen(leavings: Leavings, places: Tensor) -> Tensor | None:
    """[G] whether each of some contributions is computed; None where all are."""
    return None if leavings.active is None else leavings.active.chosen.index_select(0, places).ne(0)


@dataclass(frozen=True)
class _Work:
    """What a level does to maps of one size.

    chains: of each. window: of the pools. block: pixels in a block of the slots' moments.
    """

    chains: tuple[Work, ...]
    window: Window
    block: int

    @classmethod
    def of(cls, level: Level, slots: Slots, x: Tensor) -> _Work:
        batch, _, height, width = x.shape
        channels, *after = slots.layout.shape
        chains = tuple(Work.of(group, batch, (height, width)) for group in level.chains)
        stride = cast(Pool, level.pools[0].form).stride if level.pools else 1
        window = Window(3, stride, 1, (height, width), (after[0], after[1]), batch)
        inputs = [channels, *(_last_convolution(group).in_channels for group in level.chains)]
        return cls(chains, window, min(launch.block_of(count, channels) for count in inputs))


def _last_convolution(group: Group) -> nn.Conv2d:
    return cast(nn.Conv2d, group.first[cast(Chain, group.form).stages[-1].dense])


def _fill_in_statistics(level: Level, own: Slots, part: Tensor, block: int) -> None:
    """Of the slots of a level, those of equal eps in one launch. part: the moments of their blocks."""
    eps: list[float | None] = []
    for group, (start, stop) in zip((*level.chains, *level.pools), level.spans, strict=True):
        norms = group.form.norms if group.form is not None else []
        eps += (stop - start) * [cast(nn.BatchNorm2d, group.first[norms[-1]]).eps if norms else None]
    for value, run in groupby(range(len(eps)), key=eps.__getitem__):
        places = list(run)
        first, last = places[0], places[-1] + 1
        if value is not None:
            launch.statistics(part[first:last], own.raw.shape[1], block, value, own.norm.part(first, last))


class _Leaving(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - it has no type
        x: Tensor,
        task: _Task,
        *stacks: Tensor,
    ) -> tuple[Tensor, ...]:
        level, slots = task.level, task.slots
        work, read = _Work.of(level, slots, x), x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        own = slots.part(level.first, level.first + level.slots)
        part = launch.moments(level.slots, own.raw.shape[1], own.raw.shape[2], work.block, x.device)
        left, kept = iter(stacks), list[Tensor]()
        for chained, (start, stop) in zip(work.chains, level.spans, strict=False):  # the last is of the pools
            taps = [next(left) for _ in chained.windows]
            room = {"out": own.raw[start:stop], "part": part[start:stop]}
            on = own.norm.part(start, stop).on
            found = chain.forward(chained, read, taps, **room, block=work.block, on=on)
            task.inner.append(found.norms)
            kept += found.tensors()
        index = None
        if level.pools:
            start = level.slots - len(level.pools)
            room = {"out": own.raw[start:], "part": part[start:]}
            on = own.norm.part(start, level.slots).on
            index = mixing.pools(read, work.window, level.maxima, **room, block=work.block, on=on)
        _fill_in_statistics(level, own, part, work.block)
        ctx.save_for_backward(read, task.weights, own.raw, own.norm.mean, own.norm.inv, index, *kept)
        ctx.level, ctx.work, ctx.leavings, ctx.shape = level, work, task.leavings, x.shape
        ctx.set_materialize_grads(False)
        channels, height, width = slots.layout.shape
        return tuple(x.new_empty(()).expand(len(x), height, width, channels) for _ in level.edges)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        read, weights, raw, mean, inv, index, *kept = ctx.saved_tensors
        leavings = cast(Leavings, ctx.leavings)
        for edge, grad in zip(ctx.level.edges, grads, strict=True):
            if grad is None:
                leavings.nothing(leavings.layout.targets[edge], raw)
        active, level = leavings.active, ctx.level
        norm = Norm(mean, mean, inv)
        if active is not None:
            norm = replace(norm, on=active.slots[level.first : level.first + level.slots])
        back = _Back(level, ctx.work, raw, norm, leavings.mixing(weights), leavings.returned(raw), active)
        for_x, for_stacks = ctx.needs_input_grad[0], ctx.needs_input_grad[2:]
        parts, stacks = back.of_chains(read, kept, for_x=for_x, for_stacks=for_stacks)
        dx = back.of_map(read, parts, index).view(_last(ctx.shape)).permute(0, 3, 1, 2) if for_x else None
        return dx, None, *stacks


@dataclass(frozen=True)
class _Back:
    """The backward pass of a level, of which `raw` and `norm` are the slots."""

    level: Level
    work: _Work
    raw: Tensor
    norm: Norm
    mixture: Mixing
    returned: Returned
    active: Active | None

    def of_chains(
        self, read: Tensor, kept: Sequence[Tensor], *, for_x: bool, for_stacks: Sequence[bool]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Parts of the gradient of the map, and the gradients of the taps, as far as wanted."""
        left, asked = iter(kept), iter(for_stacks)
        parts, stacks = list[Tensor](), list[Tensor | None]()
        for work, (start, stop), places in zip(
            self.work.chains, self.level.spans, self.level.chained, strict=False
        ):
            norm = self.norm.part(start, stop)
            own, wanted = Kept.again(work, read, left, norm.on), [next(asked) for _ in work.windows]
            if not (for_x or any(wanted)):
                stacks += [None] * len(wanted)
                continue
            d = mixing.branch_gradient(self.raw[start:stop], norm, self.mixture, places, self.returned)
            dx, found = chain.backward(work, own, d, for_x=for_x, for_weights=wanted, on=norm.on)
            stacks += found
            parts += [] if dx is None else [dx]
        return parts, stacks

    def of_map(self, read: Tensor, parts: Sequence[Tensor], index: Tensor | None) -> Tensor:
        """The gradient of the map, from parts, pools and identities. index: where the maxima are."""
        alone = len(parts) == 1 and not self.level.pools and not self.level.same
        if alone and self.active is None:
            return parts[0]
        pooled, start = None, self.level.slots - len(self.level.pools)
        if self.level.pools:
            norm = self.norm.part(start, self.level.slots)
            pooled = mixing.pool_gradient(self.raw[start:], norm, self.mixture, self.level, self.returned)
        same, window = self.level.passed, self.work.window
        pools = mixing.Pooled(pooled, index, window, self.norm.part(start, self.level.slots).on)
        busy = None if self.active is None else self.active.chains[self.level.chain :]
        return mixing.leaving_gradient(
            read, parts, pools, same, self.mixture, returned=self.returned, busy=busy
        )


def _last(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a map `[B, C, H, W]` with the channels last."""
    batch, channels, height, width = shape
    return batch, height, width, channels
