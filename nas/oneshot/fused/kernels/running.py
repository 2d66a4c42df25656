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
    now = [number for one in ones for number in _row(one.norm, cast(int, one.seen.slot) + one.row)]
    launch.follow(_on_device(key, now, layout, norm.mean.device), norm, key[0], like=ones[0].norm)


def where_of(norms: Sequence[nn.BatchNorm2d], level: Level) -> Tensor | None:
    """What `launch.follow` reads of batch-norms, each of which has seen a slot of a level, in order.

    None where not all of them follow, or not in the same way, or one follows twice.
    """
    first = norms[0]
    once = len(set(norms)) == len(norms) and all(norm.track_running_stats for norm in norms)
    if not once or {norm.momentum for norm in norms} != {first.momentum}:
        return None
    if any(cast(Tensor, norm.running_mean).dtype != torch.float32 for norm in norms):
        return None
    now = [number for slot, norm in enumerate(norms) for number in _row(norm, slot)]
    key = (cast(float, first.momentum), 0)
    return _on_device(key, now, level, cast(Tensor, first.running_mean).device)


def _row(norm: nn.BatchNorm2d, slot: int) -> list[int]:
    buffers = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    return [*(cast(Tensor, buffer).data_ptr() for buffer in buffers), slot]


def _on_device(key: _Key, now: list[int], layout: Layout | Level, device: torch.device) -> Tensor:
    """[N, 4] Numbers that are there already, unless they have changed."""
    known = _KNOWN.setdefault(layout, {})
    if key not in known or known[key][0] != now:
        known[key] = (now, torch.tensor(now, dtype=torch.int64, device=device).view(-1, 4))
    return known[key][1]


def _by_library(ones: Sequence[_One]) -> None:
    if not ones:
        return
    means, variances = ([getattr(one.seen.found, name)[one.row] for one in ones] for name in ("mean", "var"))
    on = [one.on for one in ones if one.on is not None]
    follow([one.norm for one in ones], means, variances, on=on or None)
