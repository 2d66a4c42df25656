"""A family of chains by the kernels: each convolution of all its members in one launch, and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from nas.oneshot.fused.families import Family
from nas.oneshot.fused.kernels import choice, launch
from nas.oneshot.fused.kernels.maps import Affine, Drawn, Norm, Normed, Source, Taps, Window


@dataclass(frozen=True)
class Room:
    """Where the maps of a stage are before their batch-norm, [G, P, C], and its statistics [G, C]."""

    raw: Tensor
    norm: Norm

    def first(self, count: int) -> Room:
        """Those of the first so many members."""
        return Room(self.raw[:count], self.norm.part(0, count))


@dataclass(frozen=True)
class Work:
    """What a family does to maps of one size.

    maps: of how many; those that begin with each are in turns.
    windows: [steps]. taps: [steps] the kernels. affine: [stages] weights and biases of the batch-norms; None
    where they have none. drawn: [stages] which members are computed; None where all are.
    """

    family: Family
    windows: tuple[Window, ...]
    taps: tuple[Taps, ...]
    affine: tuple[Affine | None, ...]
    drawn: tuple[Drawn | None, ...]
    maps: int = 1

    def source(self, stage: int, x: Tensor, rooms: Sequence[Room]) -> Source:
        """What the first convolution of a stage reads: `x` through a ReLU, or the stage before."""
        drawn = self.drawn[stage]
        if stage == 0:
            return Source(x.view(self.maps, -1, x.shape[-1]), relu=True, drawn=drawn, shared=True)
        before = rooms[stage - 1].first(self.family.counts[stage])
        return Source(before.raw, norm=before.norm, drawn=drawn)

    def normed(self, stage: int, norm: Norm, tickets: Tensor) -> Normed:
        """The batch-norms at the end of a stage. tickets: see `Layout`."""
        return Normed(norm, self.family.norms[stage][0].eps, self.affine[stage], tickets)


def windows_of(family: Family, batch: int, sides: tuple[int, int]) -> tuple[Window, ...]:
    """[steps] Where each reads, in maps of (height, width)."""
    found = []
    for step in family.steps:
        stride = step.convolutions[0].stride[0]
        after = (-(-sides[0] // stride), -(-sides[1] // stride))
        found.append(Window(stride, sides, after, batch))
        sides = after
    return tuple(found)


def forward(work: Work, x: Tensor, rooms: Sequence[Room], tickets: Tensor) -> list[Tensor]:
    """Fills in the rooms of all stages from `x` [maps * P, C]. tickets: see `Layout`.

    Returns what depthwise convolutions have made, as the backward pass needs it.
    """
    kept: list[Tensor] = []
    source = work.source(0, x, rooms)
    for step, window, taps in zip(work.family.steps, work.windows, work.taps, strict=True):
        if step.depthwise:
            kept.append(choice.depthwise(source, taps, window))
            source = Source(kept[-1], drawn=source.drawn)
            continue
        room = rooms[step.stage]
        after = work.normed(step.stage, room.norm, tickets)
        launch.convolve(source, taps, window, out=room.raw, after=after)
        if step.stage + 1 < len(rooms):
            source = work.source(step.stage + 1, x, rooms)
    return kept


def backward(
    work: Work,
    x: Tensor,
    rooms: Sequence[Room],
    kept: Sequence[Tensor],
    *,
    grads: Sequence[Tensor],
    for_x: bool,
    wanted: Sequence[bool],
    part: Tensor | None,
    tickets: Tensor,
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradient of `x` [maps * P, C], where it is asked for; not filled in where no member is computed.

    And for each stage but the last, as far as needed, the last one first: the gradients [G, 2, C] of biases
    and weights of its batch-norms, of members that go on.

    grads: [stages] of the rooms before their batch-norm, filled in for members that end there. wanted:
    [steps] whether gradients of the weights are asked for; part: where they are left, block by block.
    tickets: see `Layout`.
    """
    made = list(kept)
    dx: Tensor | None = None
    totals: list[Tensor] = []
    for number in reversed(range(len(work.windows))):
        step = work.family.steps[number]
        gradients, given = launch.convolve_gradients, grads[step.stage]
        if step.depthwise:
            made.pop()
            gradients, given = choice.depthwise_gradients, cast(Tensor, dx)
        elif dx is not None:  # from the next stage, through the batch-norm between
            room, drawn = rooms[step.stage].first(len(dx)), work.drawn[step.stage + 1]
            totals.append(
                launch.norm_gradients(
                    dx, room.raw, room.norm, out=given[: len(dx)], drawn=drawn, tickets=tickets
                )
            )
        source = work.source(step.stage, x, rooms)
        if number and work.family.steps[number - 1].stage == step.stage:
            source = Source(made[-1], drawn=source.drawn)
        below = for_x or any(wanted[:number])
        own = part if wanted[number] else None
        dx = gradients(given, source, work.taps[number], work.windows[number], for_x=below, part=own)
        if not below:
            break
    return None if dx is None else dx.view(-1, dx.shape[-1]), totals
