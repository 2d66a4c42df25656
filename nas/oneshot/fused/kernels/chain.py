"""All stages of a group of operations as one node of autograd, forward and backward by the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nas.oneshot.fused.kernels import choice, launch
from nas.oneshot.fused.kernels.maps import Norm, Source, Window
from nas.oneshot.fused.rules import follow
from nas.oneshot.fused.stages import Stage


def run(
    stages: Sequence[Stage], layers: Sequence[Sequence[nn.Module]], x: Tensor, scale: Tensor | None
) -> Tensor:
    """What G operations in training make of one map `[B, C, H, W]`: `[G, B, C', H', W']`, channels last.

    layers: [layers][G]. scale: [G] multiplies the outcomes. Maps are kept in the type of the map, or in that
    of autocast where it is on; sums are in float32. Not to be differentiated twice.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    convs = [cast(Sequence[nn.Conv2d], layers[at]) for stage in stages for at in stage.convolutions]
    norms = [cast(Sequence[nn.BatchNorm2d], layers[stage.norm]) for stage in stages]
    weights = [torch.stack([conv.weight for conv in own]) for own in convs]
    form = _Form.of(stages, [own[0] for own in convs], x, norms[0][0].eps)
    out, *statistics = _Chain.apply(x, scale, form, *weights)  # type: ignore[no-untyped-call]
    dense = [window for window, single in zip(form.windows, form.depthwise, strict=True) if not single]
    for own, mean, var, window in zip(norms, statistics[::2], statistics[1::2], dense, strict=True):
        if own[0].track_running_stats:
            follow(own, list(mean), list(var * (window.outputs / max(1, window.outputs - 1))))
    return cast(Tensor, out).permute(0, 1, 4, 2, 3)


@dataclass(frozen=True)
class _Form:
    """What a chain looks like: of each convolution whether it is depthwise, and its window."""

    depthwise: tuple[bool, ...]
    windows: tuple[Window, ...]
    eps: float

    @classmethod
    def of(cls, stages: Sequence[Stage], convs: Sequence[nn.Conv2d], x: Tensor, eps: float) -> _Form:
        depthwise = [at == stage.depthwise for stage in stages for at in stage.convolutions]
        sides, windows = (x.shape[2], x.shape[3]), []
        for conv in convs:
            stride = conv.stride[0]
            after = (-(-sides[0] // stride), -(-sides[1] // stride))
            windows.append(Window(conv.kernel_size[0], stride, conv.dilation[0], sides, after, len(x)))
            sides = after
        return cls(tuple(depthwise), tuple(windows), eps)

    def source(self, number: int, read: Tensor, norms: Sequence[Norm]) -> Source:
        """How a convolution reads its map: the first through a ReLU, a later depthwise one through a norm.

        norms: of the stages so far, or of all.
        """
        if number == 0:
            return Source(read, relu=True)
        before = self.depthwise[:number].count(False)
        return Source(read, norm=norms[before - 1] if self.depthwise[number] else None)


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - it has no type
        x: Tensor,
        scale: Tensor | None,
        form: _Form,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        reads, norms = [x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])], list[Norm]()
        for number, (weight, window) in enumerate(zip(weights, form.windows, strict=True)):
            source = form.source(number, reads[-1], norms)
            taps = _by_taps(weight, depthwise=form.depthwise[number])
            if form.depthwise[number]:
                reads.append(choice.depthwise(source, taps, window))
            else:
                y, norm = launch.convolve(source, taps, window, form.eps)
                reads.append(y)
                norms.append(norm)
        out = launch.normalise(reads[-1], norms[-1], scale)
        statistics = [tensor for norm in norms for tensor in (norm.mean, norm.var)]
        ctx.mark_non_differentiable(*statistics)
        flat = [tensor for norm in norms for tensor in (norm.mean, norm.var, norm.inv)]
        ctx.save_for_backward(scale, *weights, *reads, *flat)
        ctx.form, ctx.shape = form, x.shape
        height, width = form.windows[-1].after
        return out.view(len(out), len(x), height, width, -1), *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        form, count = ctx.form, len(ctx.form.windows)
        scale, *saved = ctx.saved_tensors
        weights, reads, flat = saved[:count], saved[count : 2 * count + 1], saved[2 * count + 1 :]
        norms = [Norm(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
        for_x, for_scale, _form, *for_weights = ctx.needs_input_grad
        d = grad.contiguous().view(reads[-1].shape)
        dscale: Tensor | None = None
        dweights: list[Tensor | None] = [None] * count
        for number in reversed(range(count)):
            if not form.depthwise[number]:
                own = form.depthwise[: number + 1].count(False) - 1
                last = number == count - 1
                d, sums = launch.norm_gradients(d, reads[number + 1], norms[own], scale if last else None)
                dscale = sums if last else dscale
            gradients = choice.depthwise_gradients if form.depthwise[number] else launch.convolve_gradients
            wanted = (number > 0 or for_x, for_weights[number])
            taps = _by_taps(weights[number], depthwise=form.depthwise[number])
            dx, dw = gradients(
                d, form.source(number, reads[number], norms), taps, form.windows[number], wanted=wanted
            )
            dweights[number] = None if dw is None else _by_outputs(dw, weights[number])
            d = d if dx is None else dx
        batch, channels, height, width = ctx.shape
        image = d.view(batch, height, width, channels).permute(0, 3, 1, 2) if for_x else None
        moved = dscale.to(scale) if for_scale and dscale is not None else None
        return image, moved, None, *dweights


def _by_taps(weight: Tensor, *, depthwise: bool) -> Tensor:
    """`[G, O, I, K, K]` as the programs read it: `[G, K * K, C]` or `[G, K * K, I, O]`."""
    taps = weight.flatten(3).permute(0, 3, 2, 1)
    return (taps[:, :, 0] if depthwise else taps).contiguous()


def _by_outputs(grad: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_by_taps`."""
    groups, outputs, inputs, *_ = like.shape
    return grad.view(groups, -1, inputs, outputs).permute(0, 3, 2, 1).reshape(like.shape).to(like)
