"""A chain of ReLU, convolution and batch-norm of G operations by the kernels, up to its last batch-norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from nas.oneshot.fused.groups import Group
from nas.oneshot.fused.kernels import choice, launch
from nas.oneshot.fused.kernels.maps import Norm, Source, Window
from nas.oneshot.fused.stages import Chain


@dataclass(frozen=True)
class Work:
    """What a chain does to maps of one size.

    depthwise: [convolutions] whether each is. windows: [convolutions]. eps: [stages].
    """

    depthwise: tuple[bool, ...]
    windows: tuple[Window, ...]
    eps: tuple[float, ...]

    @classmethod
    def of(cls, group: Group, batch: int, sides: tuple[int, int]) -> Work:
        """That of a group of chains. sides: (height, width) of the map."""
        form, first = cast(Chain, group.form), group.first
        places = [at for stage in form.stages for at in stage.convolutions]
        windows = []
        for at in places:
            conv = cast(nn.Conv2d, first[at])
            stride = conv.stride[0]
            after = (-(-sides[0] // stride), -(-sides[1] // stride))
            windows.append(Window(conv.kernel_size[0], stride, conv.dilation[0], sides, after, batch))
            sides = after
        return cls(
            tuple(at == stage.depthwise for stage in form.stages for at in stage.convolutions),
            tuple(windows),
            tuple(cast(nn.BatchNorm2d, first[at]).eps for at in form.norms),
        )

    def source(self, number: int, read: Tensor, norms: Sequence[Norm], on: Tensor | None) -> Source:
        """How a convolution reads its map: the first through a ReLU, a later depthwise one through a norm.

        norms: of the stages so far, or of all but the last. on: which operations are computed.
        """
        if number == 0:
            return Source(read, relu=True, on=on)
        before = self.depthwise[:number].count(False)
        return Source(read, norm=norms[before - 1] if self.depthwise[number] else None, on=on)


@dataclass(frozen=True)
class Kept:
    """What the backward pass of a chain needs.

    taps: [convolutions] weights as the programs read them. reads: [convolutions] the map that each reads.
    norms: of all stages but the last.
    """

    taps: tuple[Tensor, ...]
    reads: tuple[Tensor, ...]
    norms: tuple[Norm, ...]

    def tensors(self) -> list[Tensor]:
        """All but the map that the chain reads."""
        flat = [tensor for norm in self.norms for tensor in (norm.mean, norm.var, norm.inv)]
        return [*self.taps, *self.reads[1:], *flat]

    @classmethod
    def again(cls, work: Work, x: Tensor, tensors: Iterator[Tensor], on: Tensor | None) -> Kept:
        """From the next of `tensors`, from the map that the chain reads, and from what is computed."""
        taps = tuple(next(tensors) for _ in work.windows)
        reads = (x, *(next(tensors) for _ in work.windows[1:]))
        return cls(
            taps, reads, tuple(Norm(next(tensors), next(tensors), next(tensors), on) for _ in work.eps[1:])
        )


def forward(
    work: Work,
    x: Tensor,
    taps: Sequence[Tensor],
    *,
    out: Tensor,
    part: Tensor,
    block: int,
    on: Tensor | None,
) -> Kept:
    """What weights as from `by_taps` make of `x` [P, C], to `out` [G, P', C'] before its batch-norm.

    part, block: the moments of `out`, as `launch.convolve` gives them. on: which operations are computed.
    """
    reads, norms = [x], list[Norm]()
    for number, (own, window) in enumerate(zip(taps, work.windows, strict=True)):
        source = work.source(number, reads[-1], norms, on)
        if work.depthwise[number]:
            reads.append(choice.depthwise(source, own, window))
        elif number < len(taps) - 1:
            y, norm = _normed(source, own, window, work.eps[len(norms)])
            reads.append(y)
            norms.append(norm)
        else:
            launch.convolve(source, own, window, out=out, part=part, block=block)
    return Kept(tuple(taps), tuple(reads), tuple(norms))


def _normed(source: Source, taps: Tensor, window: Window, eps: float) -> tuple[Tensor, Norm]:
    """A convolution within a chain, with the statistics of its maps."""
    groups, _, inputs, outputs = taps.shape
    pixels, block = window.outputs, launch.block_of(inputs, outputs)
    out = source.x.new_empty(groups, pixels, outputs)
    part = launch.moments(groups, pixels, outputs, block, out.device)
    launch.convolve(source, taps, window, out=out, part=part, block=block)
    norm = Norm.empty(groups, outputs, out.device, source.on)
    launch.statistics(part, pixels, block, eps, norm)
    return out, norm


def backward(
    work: Work, kept: Kept, grad: Tensor, *, for_x: bool, for_weights: Sequence[bool], on: Tensor | None
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the map [P, C] that all operations read, and of the taps, as far as wanted.

    grad: [G, P', C'] of the maps before the last batch-norm. on: which operations are computed; where none
    is, the gradient of the map is not filled in.
    """
    d, last = grad, len(work.windows) - 1
    found: list[Tensor | None] = [None] * len(work.windows)
    dx: Tensor | None = None
    for number in reversed(range(len(work.windows))):
        if not work.depthwise[number] and number < last:
            own = work.depthwise[: number + 1].count(False) - 1
            d = launch.norm_gradients(d, kept.reads[number + 1], kept.norms[own])
        gradients = choice.depthwise_gradients if work.depthwise[number] else launch.convolve_gradients
        source, taps = work.source(number, kept.reads[number], kept.norms, on), kept.taps[number]
        before = number > 0 and (for_x or any(for_weights[:number]))
        wanted = (before or (number == 0 and for_x), for_weights[number])
        dx, dw = gradients(d, source, taps, work.windows[number], wanted=wanted)
        found[number] = None if dw is None else _by_outputs(dw, taps)
        if dx is None:
            break
        d = dx
    return None if dx is None else dx.view(-1, dx.shape[-1]), found


def by_taps(group: Group) -> list[Tensor]:
    """The weights of each convolution of a group of chains, as the programs read them.

    `[G, K * K, C]` of a depthwise one, `[G, K * K, I, O]` of another.
    """
    form = cast(Chain, group.form)
    found = []
    for stage in form.stages:
        for at in stage.convolutions:
            weights = [cast(nn.Conv2d, conv).weight for conv in group.layers[at]]
            if at == stage.depthwise:
                found.append(torch.stack([weight.flatten(1).T for weight in weights]))
            else:
                found.append(torch.stack([weight.flatten(2).permute(2, 1, 0) for weight in weights]))
    return found


def _by_outputs(grad: Tensor, taps: Tensor) -> Tensor:
    """The gradient of taps, such that what each weight gets of it is dense and need not be copied."""
    order = (0, 2, 1) if taps.dim() == 3 else (0, 3, 2, 1)
    return grad.view(taps.shape).permute(order).contiguous().permute(order).to(taps)
