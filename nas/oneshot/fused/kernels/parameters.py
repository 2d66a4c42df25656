"""The parameters of a level as the programs read them, where their modules keep them; and their gradients.

They are the weights of all convolutions, line by line and step by step, and then for each stage whose
batch-norms have any, their weights and then their biases. And the eps of the batch-norms after pools, which
have neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nas.oneshot.fused.kernels.maps import Affine, Taps
from nas.oneshot.fused.layout import Level

_KNOWN: WeakKeyDictionary[Level, tuple[list[int], Tensor]] = WeakKeyDictionary()
_EPS: WeakKeyDictionary[Level, tuple[list[float], Tensor]] = WeakKeyDictionary()


def parameters_of(level: Level) -> list[Tensor]:
    """All of them; weights of convolutions have one memory layout for each step."""
    found: list[Tensor] = [conv.weight for conv in level.convolutions]
    for start, stop in _steps(level):
        own = found[start:stop]
        if not (_all(own, torch.contiguous_format) or _all(own, torch.channels_last)):
            found[start:stop] = [weight.contiguous() for weight in own]
    for norms in level.affine:
        found += [norm.weight for norm in norms]
        found += [norm.bias for norm in norms]
    return found


def taps_of(level: Level, parameters: Sequence[Tensor]) -> list[tuple[Taps, ...]]:
    """[lines][steps] The kernels that the programs read."""
    if not level.lines:
        return []
    where = _addresses(level, parameters)
    spans = iter(_steps(level))
    found = []
    for line in level.lines:
        own = []
        for step, kind, places in zip(line.family.steps, line.kind, line.places, strict=True):
            start, stop = next(spans)
            first, half = parameters[start], 0
            last = not step.depthwise and not _all(parameters[start:stop], torch.contiguous_format)
            outputs, inputs = first.shape[:2]
            if step.halves:
                outputs, half = outputs + len(parameters[start + 1]), outputs
            sizes = (outputs if step.depthwise else inputs, outputs)
            own.append(Taps(where[start:stop], first.detach(), step.kinds, kind, places, *sizes, last, half))
        found.append(tuple(own))
    return found


def affine_of(level: Level, parameters: Sequence[Tensor]) -> list[tuple[Affine | None, ...]]:
    """[lines][stages] Weights and biases of batch-norms; None for those that have none."""
    if not level.affine:
        return [(None,) * len(line.family.norms) for line in level.lines]
    where, at = _addresses(level, parameters), len(level.sizes)
    found = []
    for line in level.lines:
        own: list[Affine | None] = []
        for count, affine in zip(line.family.counts, line.family.affine, strict=True):
            if not affine:
                own.append(None)
                continue
            weights, biases = where[at : at + count], where[at + count : at + 2 * count]
            own.append(Affine(weights, biases, parameters[at].detach()))
            at += 2 * count
        found.append(tuple(own))
    return found


def eps_of_pools(level: Level, device: torch.device) -> Tensor | None:
    """[pools] float32 of the batch-norm after each, -1 where none is; None where none is at all.

    On the device already unless one has been changed.
    """
    now = [-1.0] * len(level.pools)
    for at, group in enumerate(level.pools):
        for place in group.form.norms if group.form is not None else ():
            now[at] = cast(nn.BatchNorm2d, group.first[place]).eps
    if max(now, default=-1.0) < 0:
        return None
    known = _EPS.get(level)
    if known is None or known[0] != now:
        known = _EPS[level] = (now, torch.tensor(now, dtype=torch.float32, device=device))
    return known[1]


def gradients_of_kernels(level: Level, part: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Of all convolutions, views of one tensor, from parts [blocks, numbers] that are to be added up."""
    weights = parameters[: len(level.sizes)]
    flat = part.sum(0).to(weights[0].dtype)
    return [
        own.view(weight.shape)
        if weight.is_contiguous()
        else own.view(len(weight), *weight.shape[2:], weight.shape[1]).permute(0, 3, 1, 2)
        for own, weight in zip(torch.split(flat, level.sizes), weights, strict=True)
    ]


def gradients_of_norms(level: Level, totals: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Of the batch-norms of stages, from [G, 2, C] those of biases and weights of each stage, where known."""
    found: list[Tensor | None] = []
    for norms, total in zip(level.affine, totals, strict=True):
        if total is None:
            found += [None] * (2 * len(norms))
            continue
        biases, weights = total.to(norms[0].weight.dtype).unbind(1)
        found += [*weights, *biases]
    return found


def _addresses(level: Level, parameters: Sequence[Tensor]) -> Tensor:
    """[parameters] int64; on the device already unless parameters have been moved."""
    now = [parameter.data_ptr() for parameter in parameters]
    known = _KNOWN.get(level)
    if known is None or known[0] != now:
        known = _KNOWN[level] = (now, torch.tensor(now, dtype=torch.int64, device=parameters[0].device))
    return known[1]


def _all(weights: Sequence[Tensor], memory_format: torch.memory_format) -> bool:
    return all(weight.is_contiguous(memory_format=memory_format) for weight in weights)


def _steps(level: Level) -> list[tuple[int, int]]:
    """Where the weights of each step are, line by line."""
    counts = [len(step.convolutions) for line in level.lines for step in line.family.steps]
    return list(pairwise(accumulate(counts, initial=0)))
