"""The weights of a level as the programs read them, where their modules keep them; and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nas.oneshot.fused.kernels.maps import Taps
from nas.oneshot.fused.layout import Level

_KNOWN: WeakKeyDictionary[Level, tuple[list[int], Tensor]] = WeakKeyDictionary()


def weights_of(level: Level) -> list[Tensor]:
    """Those of all convolutions, in the order of the level; of one memory layout for each step."""
    weights: list[Tensor] = [conv.weight for conv in level.convolutions]
    for start, stop in _steps(level):
        own = weights[start:stop]
        if not (_all(own, torch.contiguous_format) or _all(own, torch.channels_last)):
            weights[start:stop] = [weight.contiguous() for weight in own]
    return weights


def taps_of(level: Level, weights: Sequence[Tensor]) -> list[tuple[Taps, ...]]:
    """[lines][steps] The kernels that the programs read. weights: as from `weights_of`."""
    if not level.lines:
        return []
    where = _addresses(level, weights)
    spans = iter(_steps(level))
    found = []
    for line in level.lines:
        own = []
        for step, kind, places in zip(line.family.steps, line.kind, line.places, strict=True):
            start, stop = next(spans)
            first = weights[start]
            last = not step.depthwise and not _all(weights[start:stop], torch.contiguous_format)
            outputs, inputs = first.shape[:2]
            sizes = (outputs if step.depthwise else inputs, outputs)
            own.append(Taps(where[start:stop], first.detach(), step.kinds, kind, places, *sizes, last))
        found.append(tuple(own))
    return found


def gradients_of(level: Level, part: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Those of all weights, views of one tensor, from parts [blocks, numbers] that are to be added up."""
    flat = part.sum(0).to(weights[0].dtype)
    return [
        own.view(weight.shape)
        if weight.is_contiguous()
        else own.view(len(weight), *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)
        for own, weight in zip(torch.split(flat, level.sizes), weights, strict=True)
    ]


def _addresses(level: Level, weights: Sequence[Tensor]) -> Tensor:
    """[weights] int64; on the device already unless weights have been moved."""
    now = [weight.data_ptr() for weight in weights]
    known = _KNOWN.get(level)
    if known is None or known[0] != now:
        known = _KNOWN[level] = (now, torch.tensor(now, dtype=torch.int64, device=weights[0].device))
    return known[1]


def _all(weights: Sequence[Tensor], memory_format: torch.memory_format) -> bool:
    return all(weight.is_contiguous(memory_format=memory_format) for weight in weights)


def _steps(level: Level) -> list[tuple[int, int]]:
    """Where the weights of each step are, line by line."""
    counts = [len(step.convolutions) for line in level.lines for step in line.family.steps]
    return list(pairwise(accumulate(counts, initial=0)))
