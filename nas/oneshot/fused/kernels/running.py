"""Running statistics of the batch-norms of a cell, which all go towards what they have seen in one launch.

Not yet run on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nas.oneshot.fused.kernels import launch
from nas.oneshot.fused.kernels.maps import Norm
from nas.oneshot.fused.layout import Layout, Level
from nas.oneshot.fused.rules import follow

_Key = tuple[float, int]
_KNOWN: WeakKeyDictionary[Layout | Level, dict[_Key, tuple[list[int], Tensor]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Seen:
    """Batch-norms, and the statistics of what they have seen: [G, C], or [1, C] where all have seen the same.

    on: which of them have seen anything, [G]; None where all have. slot: the first one of the cell whose
    statistics these are; None where they are those of none.
    """

    norms: Sequence[nn.BatchNorm2d]
    found: Norm
    on: Tensor | Sequence[Tensor] | None
    slot: int | None


@dataclass(frozen=True)
class _One:
    """A batch-norm, the row of what it has seen among that of several, and whether it has seen anything."""

    norm: nn.BatchNorm2d
    seen: Seen
    row: int
    on: Tensor | None

    @property
    def by_program(self) -> bool:
        """Whether the program moves its statistics."""
        kind = cast(Tensor, self.norm.running_mean).dtype
        return self.seen.slot is not None and self.on is None and kind == torch.float32


def follow_all(seen: Sequence[Seen], layout: Layout | Level, norm: Norm) -> None:
    """Moves the running statistics. norm: the statistics of all slots of the cell, or of a level."""
    times: Counter[nn.Module] = Counter()
    found: dict[_Key, list[_One]] = {}
    for own in seen:
        for at, module in enumerate(own.norms):
            if module.track_running_stats:
                row, on = min(at, len(own.found.mean) - 1), None if own.on is None else own.on[at]
                # A module that stands on several edges follows one after the other.
                key = (cast(float, module.momentum), times[module])
                found.setdefault(key, []).append(_One(module, own, row, on))
                times[module] += 1
    for key, ones in found.items():
        _by_program(key, [one for one in ones if one.by_program], layout, norm)
        _by_library([one for one in ones if not one.by_program])


def _by_program(key: _Key, ones: Sequence[_One], layout: Layout | Level, norm: Norm) -> None:
    if not ones:
        return
    now = []
    for one in ones:
        buffers = (one.norm.running_mean, one.norm.running_var, one.norm.num_batches_tracked)
        now += [*(cast(Tensor, buffer).data_ptr() for buffer in buffers), cast(int, one.seen.slot) + one.row]
    known = _KNOWN.setdefault(layout, {})
    if key not in known or known[key][0] != now:
        known[key] = (now, torch.tensor(now, dtype=torch.int64, device=norm.mean.device).view(-1, 4))
    launch.follow(known[key][1], norm, key[0], like=ones[0].norm)


def _by_library(ones: Sequence[_One]) -> None:
    if not ones:
        return
    means, variances = ([getattr(one.seen.found, name)[one.row] for one in ones] for name in ("mean", "var"))
    on = [one.on for one in ones if one.on is not None]
    follow([one.norm for one in ones], means, variances, on=on or None)
