"""What one pass through a cell keeps for its nodes, and what its nodes leave for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nas.oneshot.fused.kernels.maps import Drawn, Norm
from nas.oneshot.fused.kernels.mixing_launch import EDGE, NODE, Mixing, Returned
from nas.oneshot.fused.layout import Layout, Sum


@dataclass(frozen=True)
class Active:
    """What of a cell is computed under a mixture that was drawn on the device, which alone knows.

    chosen: [contributions] int32, 0 for all but what was drawn. slots: [slots] int32 0 for those left empty.
    order, live: [rows of the layout] of the members of each stage, see `Drawn`. busy: [lines] int32 whether
    any member of a family is computed.
    """

    chosen: Tensor
    slots: Tensor
    order: Tensor
    live: Tensor
    busy: Tensor

    @classmethod
    def of(cls, layout: Layout, chosen: Tensor) -> Active:
        """Says of every slot whether it was drawn, and sorts the members of every stage by that."""
        padded = torch.cat([chosen, chosen.new_zeros(1)])
        slots = chosen.new_zeros(layout.slots)
        slots.index_add_(0, layout.owned, chosen.index_select(0, layout.owners))
        rows = padded.index_select(0, layout.rows.view(-1)).view(layout.rows.shape)
        live, order = rows.sort(dim=1, descending=True, stable=True)
        busy = live[: layout.lines].select(1, 0) if live.numel() else live.new_empty(0)
        return cls(chosen, slots.clamp_(max=1), order.int(), live, busy.contiguous())

    def drawn(self, row: int, count: int, most: int) -> Drawn:
        """Which of the first members of a row of the layout are computed; at most so many are."""
        return Drawn(self.order[row, :count], self.live[row, :count], most)


@dataclass(frozen=True, eq=False)
class Slots:
    """Maps that are added up in nodes, with their statistics.

    raw: [slots, P, C] before their batch-norm. norm: [slots, C].
    """

    layout: Layout
    batch: int
    raw: Tensor
    norm: Norm

    @classmethod
    def empty(
        cls, layout: Layout, batch: int, dtype: torch.dtype, device: torch.device, on: Tensor | None
    ) -> Slots:
        """Slots to be filled in by the levels of a cell. on: [slots] which will be, all where None."""
        channels, height, width = layout.shape
        raw = torch.empty(layout.slots, batch * height * width, channels, dtype=dtype, device=device)
        return cls(layout, batch, raw, Norm.empty(layout.slots, channels, device, on))

    def part(self, start: int, stop: int) -> Slots:
        """Some of them."""
        return Slots(self.layout, self.batch, self.raw[start:stop], self.norm.part(start, stop))


class Leavings:
    """Gradients of all nodes of a cell, for the operations that lead there.

    masked: whether each edge has a gradient of its own, since images are dropped from it; else all edges into
      a node share one.
    active: what is computed; all where None.
    """

    def __init__(self, layout: Layout, *, masked: bool, active: Active | None) -> None:
        self.layout, self.masked, self.active = layout, masked, active
        self._found: Returned | None = None

    @property
    def column(self) -> int:
        """That of the table of contributions with the row of each."""
        return EDGE if self.masked else NODE

    def rows(self, node: int) -> tuple[int, int]:
        """Where the gradients of a computed node are."""
        return self.layout.sums[node].among if self.masked else (node, node + 1)

    def mixing(self, weights: Tensor, own: Sum | None = None) -> Mixing:
        """Contributions with their weights: of one node, or all."""
        table, chosen = self.layout.table, None if self.active is None else self.active.chosen
        if own is not None:
            table = table[own.start : own.stop]
            chosen = None if chosen is None else chosen[own.start : own.stop]
        return Mixing(table, weights, self.column, chosen)

    def returned(self, like: Tensor) -> Returned:
        """Where the gradients are. like: [.., P, C] a map."""
        if self._found is None:
            count = len(self.layout.targets if self.masked else self.layout.sums)
            rows = like.new_empty(count, *like.shape[-2:])
            sums = like.new_empty(len(self.layout.table), 2, like.shape[-1], dtype=torch.float32)
            self._found = Returned(rows, sums)
        return self._found

    def room(self, node: int, like: Tensor) -> Tensor | None:
        """Where the gradient [P, C] of a computed node is; None where each edge has one of its own."""
        return None if self.masked else self.returned(like).rows[node]

    def nothing(self, node: int, like: Tensor) -> None:
        """Says that no gradient has reached a computed node."""
        returned, own = self.returned(like), self.layout.sums[node]
        first, stop = self.rows(node)
        returned.rows[first:stop].zero_()
        returned.sums[own.start : own.stop].zero_()
