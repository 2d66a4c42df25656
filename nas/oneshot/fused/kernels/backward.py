"""The backward pass of all operations that leave a node, from the gradients of the nodes they lead to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.oneshot.fused.kernels import family
from nas.oneshot.fused.kernels import mixing_launch as mixing
from nas.oneshot.fused.kernels.family import Room, Work
from nas.oneshot.fused.kernels.maps import Norm, Window
from nas.oneshot.fused.kernels.mixing_launch import Mixing, Returned
from nas.oneshot.fused.kernels.parameters import gradients_of_kernels, gradients_of_norms
from nas.oneshot.fused.kernels.slots import Active
from nas.oneshot.fused.kernels.tiles import parts_of
from nas.oneshot.fused.layout import Level, Line


@dataclass(frozen=True)
class Backward:
    """The backward pass of a level. raw, norm: of all slots of the cell. tickets: see `Layout`."""

    level: Level
    works: Sequence[Work]
    window: Window
    raw: Tensor
    norm: Norm
    mixture: Mixing
    returned: Returned
    active: Active | None
    tickets: Tensor

    def of_families(
        self,
        read: Tensor,
        parameters: Sequence[Tensor],
        saved: Sequence[Tensor],
        *,
        for_x: bool,
        wanted: Sequence[bool],
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Parts of the gradient of the map, and the gradients of the parameters, as far as wanted.

        saved: what the forward pass has kept.
        """
        level, last = self.level, self.level.slots - len(self.level.pools)
        if not level.lines or not (for_x or any(wanted)):
            return [], [None] * len(wanted)
        grads = self.raw.new_empty(last, *self.raw.shape[1:])
        mixing.branch_gradient(
            self.raw,
            self.norm,
            self.mixture,
            level.ending,
            returned=self.returned,
            out=grads,
            first=level.first,
        )
        asked, kernels = _asked(level, wanted), None
        if any(wanted[: len(level.sizes)]):
            kernels = self._part(sum(level.sizes))
        left, parts, totals = iter(saved), list[Tensor](), list[Tensor | None]()
        ending = iter(self._totals_of_ends()) if level.affine else None
        for line, work, asking in zip(level.lines, self.works, asked, strict=True):
            own = [next(left) for step in work.family.steps if step.depthwise]
            rooms = self._rooms(line, left)
            given = [
                torch.empty_like(room.raw) if span is None else grads[span[0] : span[1]]
                for span, room in zip(line.spans, rooms, strict=True)
            ]
            inner: list[Tensor] = []
            if for_x or any(asking):
                dx, inner = family.backward(
                    work, read, rooms, own, grads=given, for_x=for_x, wanted=asking, part=kernels,
                    tickets=self.tickets,
                )  # fmt: skip
                parts += [] if dx is None else [dx]
            if ending is not None:
                totals += _totals(line, inner, next(ending))
        found: list[Tensor | None] = [None] * len(level.sizes)
        if kernels is not None:
            found = [*gradients_of_kernels(level, kernels, parameters)]
        found += gradients_of_norms(level, totals)
        return parts, [g if asking else None for g, asking in zip(found, wanted, strict=True)]

    def _totals_of_ends(self) -> Sequence[Tensor]:
        """[lines] Gradients [G, 2, C] of biases and weights of the last batch-norms of all members."""
        ending = self.level.ending
        weights = self.mixture.weights.index_select(0, ending).view(-1, 1, 1)
        totals = self.returned.sums.index_select(0, ending) * weights
        return torch.split(totals, [len(line.family.branches) for line in self.level.lines])

    def _part(self, numbers: int) -> Tensor:
        """Where parts of the gradients of weights are left; zeros where some operations leave nothing."""
        blocks = parts_of(*self.raw.shape[1:])
        make = torch.empty if self.active is None else torch.zeros
        return make(blocks, numbers, device=self.raw.device)

    def _rooms(self, line: Line, saved: Iterator[Tensor]) -> list[Room]:
        """Of all stages of a line. saved: of those that are no slots, next."""
        found = []
        for span in line.spans:
            if span is None:
                raw, *tensors = (next(saved) for _ in range(6))
                found.append(Room(raw, Norm(*tensors)))
            else:
                start, stop = self.level.first + span[0], self.level.first + span[1]
                found.append(Room(self.raw[start:stop], self.norm.part(start, stop)))
        return found

    def of_map(
        self,
        read: Tensor,
        parts: Sequence[Tensor],
        index: Tensor | None,
        *,
        other: Tensor | None,
        out: Tensor | None,
    ) -> Tensor:
        """The gradient of the maps as `read` has them, from parts, pools and identities.

        index: where the maxima are. other: [B, C, H, W] from what else has read the one map, if anything.
        out: where it goes, if that matters.
        """
        level = self.level
        alone = len(parts) == 1 and not level.pools and not level.same and other is None
        if alone and self.active is None:
            return parts[0]
        pooled, stop = None, level.first + level.slots
        start = stop - len(level.pools)
        norm = self.norm.part(start, stop)
        if level.pools:
            pooled = mixing.pool_gradient(self.raw[start:stop], norm, self.mixture, level, self.returned)
        pools = mixing.Pooled(pooled, index, self.window, norm.on)
        busy = None if self.active is None else self.active.busy[level.line :]
        return mixing.leaving_gradient(
            read, parts, pools, level.passed, self.mixture, returned=self.returned, busy=busy,
            maps=level.maps, other=other, out=out,
        )  # fmt: skip


def _asked(level: Level, wanted: Sequence[bool]) -> list[list[bool]]:
    """[lines][steps] Whether gradients of the kernels are wanted, or of the batch-norms after them.

    wanted: of each parameter.
    """
    left = iter(wanted)
    found = [
        [any([next(left) for _ in step.convolutions]) for step in line.family.steps] for line in level.lines
    ]
    for line, own in zip(level.lines, found, strict=True):
        ends = [number for number, step in enumerate(line.family.steps) if not step.depthwise]
        for end, count, affine in zip(ends, line.family.counts, line.family.affine, strict=True):
            own[end] |= affine and any([next(left) for _ in range(2 * count)])
    return found


def _totals(line: Line, inner: Sequence[Tensor], ends: Tensor) -> Iterator[Tensor | None]:
    """Of each stage that has any: gradients [G, 2, C] of biases and weights; None where they are not known.

    inner: of members that go on, the last stage but one first. ends: of all members, where they end.
    """
    counts, last = [*line.family.counts, 0], len(line.family.counts) - 1
    for stage, affine in enumerate(line.family.affine):
        if not affine:
            continue
        own = ends[counts[stage + 1] : counts[stage]]
        if stage == last:
            yield own
        elif len(inner) > last - 1 - stage:
            yield torch.cat([inner[last - 1 - stage], own])
        else:
            yield None
