"""All operations that leave a node as one node of autograd, up to their last batch-norm.

Their maps go to slots, where `node` adds them up. What autograd sees of an edge is a *token*: it has the
shape of a map but no numbers, and shows that the gradient of the node that the edge leads to has been left
where all operations find it. So no gradient is copied for each of them. What else reads the node's map gets
it from here, so that its gradient is added where those of the operations are, and the sum is left where the
operations that lead to the node look for it. Not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nas.oneshot.fused.kernels import family
from nas.oneshot.fused.kernels import mixing_launch as mixing
from nas.oneshot.fused.kernels.backward import Backward
from nas.oneshot.fused.kernels.family import Room, Work, windows_of
from nas.oneshot.fused.kernels.maps import Drawn, Norm, Window
from nas.oneshot.fused.kernels.parameters import affine_of, eps_of_pools, parameters_of, taps_of
from nas.oneshot.fused.kernels.running import Seen
from nas.oneshot.fused.kernels.slots import Active, Leavings, Slots
from nas.oneshot.fused.layout import Level, Line
from nas.oneshot.fused.stages import Pool


def leave(
    level: Level, x: Tensor, slots: Slots, leavings: Leavings, weights: Tensor, *, node: int | None
) -> tuple[Tensor, Sequence[Tensor], list[Seen]]:
    """Fills in the slots of a level from its maps `[maps * B, C, H, W]`, channels last.

    weights: of all contributions of the cell. node: which computed one the map is of; None for inputs.
    Returns the map for what else reads it, the tokens of the level's edges, and what running statistics have
    to follow.
    """
    task = _Task(level, node, slots, leavings, weights, [])
    passed, *tokens = _Leaving.apply(x, task, *parameters_of(level))  # type: ignore[no-untyped-call]
    return passed if x.requires_grad else x, tokens, [*_seen(task), *_seen_by_pools(task)]


@dataclass(frozen=True)
class _Task:
    """One run of a level. rooms: filled in with those of all stages, line by line."""

    level: Level
    node: int | None
    slots: Slots
    leavings: Leavings
    weights: Tensor
    rooms: list[list[Room]]


def _seen(task: _Task) -> Iterator[Seen]:
    """The batch-norms of families."""
    active = task.leavings.active
    for line, rooms in zip(task.level.lines, task.rooms, strict=True):
        for norms, room, span in zip(line.family.norms, rooms, line.spans, strict=True):
            # Where maps between stages are no slots, all members end together in slots that tell the same.
            start = task.level.first + cast(tuple[int, int], span or line.spans[-1])[0]
            on = None if active is None else active.slots[start : start + len(norms)]
            yield Seen(norms, room.norm, on, None if span is None else start)


def _seen_by_pools(task: _Task) -> Iterator[Seen]:
    """Those of pools, of which each may have one; all branches of a pool see one map."""
    level, active = task.level, task.leavings.active
    first = level.first + level.slots - len(level.pools)
    for slot, (group, branches) in enumerate(zip(level.pools, level.branches, strict=True), start=first):
        for at in group.form.norms if group.form is not None else ():
            on = None if active is None else [active.chosen[place] for place in branches]
            norms = cast(Sequence[nn.BatchNorm2d], group.pieces[at])
            yield Seen(norms, task.slots.norm.part(slot, slot + 1), on, slot)


def _works(level: Level, x: Tensor, parameters: Sequence[Tensor], active: Active | None) -> list[Work]:
    """What each family does to the maps `x` [maps * B, C, H, W]."""
    _, _, height, width = x.shape
    own = zip(level.lines, taps_of(level, parameters), affine_of(level, parameters), strict=True)
    return [
        Work(
            line.family,
            windows_of(line.family, len(x) // level.maps, (height, width)),
            taps,
            affine,
            _drawn(line, active),
            level.maps,
        )
        for line, taps, affine in own
    ]


def _drawn(line: Line, active: Active | None) -> tuple[Drawn | None, ...]:
    if active is None:
        return (None,) * len(line.rows)
    return tuple(map(active.drawn, line.rows, line.family.counts, line.most))


def _pooling(level: Level, x: Tensor, slots: Slots) -> Window:
    """Where the pools of a level read."""
    _, _, height, width = x.shape
    _, *after = slots.layout.shape
    stride = cast(Pool, level.pools[0].form).stride if level.pools else 1
    return Window(stride, (height, width), (after[0], after[1]), slots.batch)


def _rooms(line: Line, work: Work, own: Slots, active: Active | None) -> list[Room]:
    """Of all stages of a line; own: the slots of its level."""
    found = []
    ends = [number for number, step in enumerate(work.family.steps) if not step.depthwise]
    for span, end in zip(line.spans, ends, strict=True):
        if span is not None:
            found.append(Room(own.raw[span[0] : span[1]], own.norm.part(*span)))
            continue
        taps, pixels = work.taps[end], work.windows[end].outputs
        raw = own.raw.new_empty(taps.groups, pixels, taps.outputs)
        start, stop = cast(tuple[int, int], line.spans[-1])
        on = None if active is None else own.norm.part(start, stop).on
        found.append(Room(raw, Norm.empty(taps.groups, taps.outputs, raw.device, on)))
    return found


class _Leaving(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - it has no type
        x: Tensor,
        task: _Task,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        level, slots, active = task.level, task.slots, task.leavings.active
        works, window = _works(level, x, parameters, active), _pooling(level, x, slots)
        read, own = (
            x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]),
            slots.part(level.first, level.first + level.slots),
        )
        tickets, kept = slots.layout.tickets, list[Tensor]()
        for line, work in zip(level.lines, works, strict=True):
            rooms = _rooms(line, work, own, active)
            kept += family.forward(work, read, rooms, tickets)
            task.rooms.append(rooms)
            apart = [room for room, span in zip(rooms, line.spans, strict=True) if span is None]
            kept += [tensor for room in apart for tensor in (room.raw, *room.norm.tensors)]
        index = None
        if level.pools:
            start = level.slots - len(level.pools)
            norm, eps = own.norm.part(start, level.slots), eps_of_pools(level, x.device)
            index = mixing.pools(
                read, window, level.maxima, out=own.raw[start:], norm=norm, eps=eps, tickets=tickets,
                maps=level.maps,
            )  # fmt: skip
        ctx.save_for_backward(read, task.weights, slots.raw, *slots.norm.tensors, index, *parameters, *kept)
        ctx.level, ctx.works, ctx.window, ctx.leavings = level, works, window, task.leavings
        ctx.node, ctx.shape = task.node, x.shape
        ctx.set_materialize_grads(False)
        channels, height, width = slots.layout.shape
        return x, *(x.new_empty(()).expand(slots.batch, height, width, channels) for _ in level.edges)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - it has no type
        other: Tensor | None,
        *grads: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        read, mixture, raw, mean, var, inv, scale, shift, index, *rest = ctx.saved_tensors
        leavings, level = cast(Leavings, ctx.leavings), cast(Level, ctx.level)
        for edge, grad in zip(level.edges, grads, strict=True):
            if grad is None:
                leavings.nothing(leavings.layout.targets[edge], raw)
        active = leavings.active
        norm = Norm(mean, var, inv, scale, shift, None if active is None else active.slots)
        mixed, returned = leavings.mixing(mixture), leavings.returned(raw)
        tickets = leavings.layout.tickets
        back = Backward(level, ctx.works, ctx.window, raw, norm, mixed, returned, active, tickets)
        for_x, wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[2:]
        parameters, saved = rest[: len(wanted)], rest[len(wanted) :]
        parts, found = back.of_families(read, parameters, saved, for_x=for_x, wanted=wanted)
        if not for_x:
            return None, None, *found
        out = None if ctx.node is None else leavings.room(ctx.node, raw)
        dx = back.of_map(read, parts, index, other=other, out=out)
        return dx.view(_last(ctx.shape)).permute(0, 3, 1, 2), None, *found


def _last(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a map `[B, C, H, W]` with the channels last."""
    batch, channels, height, width = shape
    return batch, height, width, channels
