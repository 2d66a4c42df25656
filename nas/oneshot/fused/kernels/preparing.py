"""The preprocessing of a cell's inputs by the kernels, as one node of autograd. Not yet run on a GPU.

Each module is a chain of one stage without depthwise convolutions. All make maps of one shape, one after the
other in memory, so that what leaves all inputs reads them as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nas.oneshot.fused.groups import Branch, Group
from nas.oneshot.fused.kernels import family, launch
from nas.oneshot.fused.kernels.family import Room, Work, windows_of
from nas.oneshot.fused.kernels.maps import Norm, adjacent
from nas.oneshot.fused.kernels.parameters import (
    affine_of,
    gradients_of_kernels,
    gradients_of_norms,
    parameters_of,
    taps_of,
)
from nas.oneshot.fused.kernels.running import Seen, follow_all, where_of
from nas.oneshot.fused.kernels.tiles import parts_of, tickets_of
from nas.oneshot.fused.laying_out import lay_out_each
from nas.oneshot.fused.layout import Level
from nas.oneshot.fused.stack import channels_last, type_of_maps
from nas.oneshot.fused.stages import Form


@dataclass(frozen=True, eq=False)
class Preparation:
    """Modules that prepare a map each, of which they make maps of one shape.

    level: of which each is a line. tickets: as in `Layout`.
    """

    level: Level
    tickets: Tensor

    @classmethod
    def of(
        cls, layers: Sequence[Sequence[nn.Module]], forms: Sequence[Form], device: torch.device
    ) -> Preparation:
        """layers: of each module."""
        groups = [
            Group((Branch(at, own[0], None),), (), tuple((layer,) for layer in own), weighed=False, form=form)
            for at, (own, form) in enumerate(zip(layers, forms, strict=True))
        ]
        level = lay_out_each(groups, device)
        channels = level.lines[0].family.norms[0][0].num_features
        count = len(groups) * tickets_of(channels)
        return cls(level, torch.zeros(count, dtype=torch.int32, device=device))

    def prepare(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """What each module makes of its map `[B, C, H, W]`; the running statistics follow."""
        dtype, level = type_of_maps(maps), self.level
        norms = [line.family.norms[0][0] for line in level.lines]
        own, task = [channels_last(x.to(dtype)) for x in maps], _Task(self, where_of(norms, level), [])
        states = _Preparing.apply(task, *own, *parameters_of(level))  # type: ignore[no-untyped-call]
        if task.where is None:
            (norm,) = task.norm
            seen = [Seen([own], norm.part(at, at + 1), None, at) for at, own in enumerate(norms)]
            follow_all(seen, level, norm)
        return cast(Sequence[Tensor], states)


@dataclass(frozen=True)
class _Task:
    """One run. where: see `where_of`. norm: filled in with the statistics of all maps."""

    preparation: Preparation
    where: Tensor | None
    norm: list[Norm]


class _Preparing(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - it has no type
        task: _Task,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        level = task.preparation.level
        maps, parameters = tensors[: level.slots], tensors[level.slots :]
        works = _works(level, maps, parameters)
        after, channels = works[0].windows[0], works[0].taps[0].outputs
        raw = maps[0].new_empty(level.slots, after.outputs, channels)
        norm = Norm.empty(level.slots, channels, raw.device)
        for at, (x, work) in enumerate(zip(maps, works, strict=True)):
            family.forward(work, _rows(x), [_room(raw, norm, at)], task.preparation.tickets)
        states = raw.new_empty(level.slots * after.batch, *after.after, channels)
        like = level.lines[0].family.norms[0][0]
        launch.normalise(raw, norm, out=states, where=task.where, like=like)
        ctx.save_for_backward(*tensors, raw, *norm.tensors)
        ctx.preparation, ctx.works = task.preparation, works
        ctx.set_materialize_grads(False)
        task.norm.append(norm)
        return states.permute(0, 3, 1, 2).chunk(level.slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        *tensors, raw, mean, var, inv, scale, shift = ctx.saved_tensors
        level, tickets = ctx.preparation.level, ctx.preparation.tickets
        maps, parameters = tensors[: level.slots], tensors[level.slots :]
        # What no edge reads has no gradient, as where modules run by themselves, so that its weights rest.
        needs = zip(ctx.needs_input_grad[1:], _lines_of(level), strict=True)
        asked = [need and grads[line] is not None for need, line in needs]
        for_maps, wanted = asked[: level.slots], asked[level.slots :]
        norm, given = Norm(mean, var, inv, scale, shift), torch.empty_like(raw)
        totals = launch.norm_gradients(_in_one(grads, raw), raw, norm, out=given, drawn=None, tickets=tickets)
        part = None
        if any(wanted[: len(level.sizes)]):
            part = torch.empty(parts_of(*raw.shape[1:]), sum(level.sizes), device=raw.device)
        found, left = list[Tensor | None](), iter(wanted)
        for at, (x, work) in enumerate(zip(maps, ctx.works, strict=True)):
            asking = any([next(left) for _ in work.family.convolutions])
            dx, _ = family.backward(
                work, _rows(x), [_room(raw, norm, at)], [], grads=[given[at : at + 1]], for_x=for_maps[at],
                wanted=[asking], part=part, tickets=tickets,
            )  # fmt: skip
            found.append(None if dx is None else _map(dx, x))
        moved: list[Tensor | None] = [None] * len(level.sizes)
        if part is not None:
            moved = [*gradients_of_kernels(level, part, parameters)]
        moved += gradients_of_norms(level, torch.split(totals, 1) if level.affine else [])
        return None, *found, *(grad if asking else None for grad, asking in zip(moved, wanted, strict=True))


def _lines_of(level: Level) -> Iterator[int]:
    """The number of the line that each map and each parameter belongs to, in the order of both."""
    numbers = range(level.slots)
    yield from numbers
    for at, line in zip(numbers, level.lines, strict=True):
        yield from (at for _ in line.family.convolutions)
    yield from (at for at in numbers for _ in ("weight", "bias") if level.affine)


def _works(level: Level, maps: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Work]:
    """What is done to each map."""
    own = zip(level.lines, maps, taps_of(level, parameters), affine_of(level, parameters), strict=True)
    return [
        Work(line.family, windows_of(line.family, len(x), (x.shape[2], x.shape[3])), taps, affine, (None,))
        for line, x, taps, affine in own
    ]


def _room(raw: Tensor, norm: Norm, at: int) -> Room:
    return Room(raw[at : at + 1], norm.part(at, at + 1))


def _rows(x: Tensor) -> Tensor:
    """[P, C] of a map with its channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _map(rows: Tensor, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _in_one(grads: Sequence[Tensor | None], raw: Tensor) -> Tensor:
    """Gradients of all states as `raw` [G, P, C]; zeros of those that have none."""
    like = next(grad for grad in grads if grad is not None)
    own = [channels_last(torch.zeros_like(like) if grad is None else grad) for grad in grads]
    one = adjacent(own)
    return _rows(torch.cat(own) if one is None else one).view(raw.shape)
