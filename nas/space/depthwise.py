"""Depthwise convolution whose gradients are fast on the CPU, where the library has fast code for few shapes.

For float32 there is fast code for the gradient of 3x3 kernels without dilation, and for every forward pass.
So the gradient of the input is taken as a forward pass with the kernel turned round; and the gradient of a
k x k kernel is put together from 3x3 blocks, each of which sees the maps moved by some pixels. With dilation
d, the pixels of equal position modulo d are maps of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise(x: Tensor, weight: Tensor, *, stride: int, dilation: int) -> Tensor:
    """`[B, C, H, W]`, kernels `[C, 1, k, k]` with odd k, padded so that stride 1 keeps the size.

    Equals `conv2d(x, weight, stride=stride, padding=dilation * (k // 2), dilation=dilation, groups=C)`.
    """
    if stride > 1 and dilation % stride == 0:
        # Every tap reads pixels at multiples of the stride only.
        x, stride, dilation = x[:, :, ::stride, ::stride], 1, dilation // stride
    weight = _reaching(weight, (max(x.shape[2:]) - 1) // dilation)
    if weight.shape[-1] == 1:
        return x[:, :, ::stride, ::stride] * weight.view(1, -1, 1, 1)
    known = x.device.type == "cpu" and x.dtype == weight.dtype and not torch.is_autocast_enabled("cpu")
    if stride == 1 and known and (weight.shape[-1] > 3 or dilation > 1):
        out: Tensor = _Depthwise.apply(x, weight, dilation)  # type: ignore[no-untyped-call]
        return out
    if _only_maps_learn(x, weight):
        return by_fixed(x, weight, stride=stride, dilation=dilation)
    return F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation, groups=x.shape[1])


def _reaching(weight: Tensor, reach: int) -> Tensor:
    """The kernels without the taps that read nothing but zeros, more than `reach` from the centre."""
    cut = weight.shape[-1] // 2 - reach
    return weight[:, :, cut:-cut, cut:-cut] if cut > 0 else weight


class _Depthwise(torch.autograd.Function):
    """Stride 1. Where the gradient is itself differentiated, the library's own is used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:  # noqa: ANN401 - it has no type
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _forward(x, weight, dilation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # noqa: ANN401
        (grad,), (x, weight) = grads, ctx.saved_tensors
        for_x, for_weight, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            if for_x and not for_weight:
                return _turned_round(grad, weight, x, 1, ctx.dilation), None, None
            return *_library(grad, x, weight, ctx.dilation, (for_x, for_weight)), None
        grad = grad.contiguous(memory_format=torch.channels_last)
        dx = _forward(grad, weight.flip(2, 3), ctx.dilation) if for_x else None
        dw = weight_gradient(grad, x, weight, ctx.dilation) if for_weight else None
        return dx, dw, None


def _only_maps_learn(x: Tensor, weight: Tensor) -> bool:
    """Whether the gradient of the maps is wanted, and that of the kernels is not."""
    as_is = not torch.is_autocast_enabled(x.device.type) and x.dtype == weight.dtype
    return as_is and torch.is_grad_enabled() and x.requires_grad and not weight.requires_grad


def by_fixed(x: Tensor, weight: Tensor, *, stride: int, dilation: int) -> Tensor:
    """The same with kernels of which no gradient is wanted.

    Its second derivative is one call; of that of the library, each channel is a call of its own.
    """
    out: Tensor = _Fixed.apply(x, weight, stride, dilation)  # type: ignore[no-untyped-call]
    return out


class _Fixed(torch.autograd.Function):
    """As the library does it, but for a gradient that is itself differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        ctx.form = stride, dilation
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:  # noqa: ANN401
        (grad,), (x, weight), (stride, dilation) = grads, ctx.saved_tensors, ctx.form
        if torch.is_grad_enabled():
            dx: Tensor | None = _turned_round(grad, weight, x, stride, dilation)
        else:
            dx, _ = _library(grad, x, weight, dilation, (True, False), stride=stride)
        return dx, None, None, None


def _turned_round(grad: Tensor, weight: Tensor, x: Tensor, stride: int, dilation: int) -> Tensor:
    """The gradient of the maps `x` as an operation whose own gradient is a convolution in one call."""
    padding = dilation * (weight.shape[-1] // 2)
    sides = zip(x.shape[2:], grad.shape[2:], strict=True)
    rest = [side - (out - 1) * stride - 1 for side, out in sides]
    return F.conv_transpose2d(grad, weight, None, stride, padding, rest, x.shape[1], dilation)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """The gradient of the kernels `[C, 1, k, k]` at stride 1, from 3x3 blocks."""
    channels, radius = x.shape[1], weight.shape[-1] // 2
    reach = max(1, radius - 1)
    moved, centre = _spread(x, reach, dilation), _spread(grad, reach, dilation)
    block, out = weight.new_empty(channels, 1, 3, 3), torch.empty_like(weight)
    for row in _centres(radius):
        for column in _centres(radius):
            _, found = _library(centre.at(0, 0), moved.at(row, column), block, 1, (False, True))
            assert found is not None
            top, left = radius + row - 1, radius + column - 1
            out[:, :, top : top + 3, left : left + 3] = found
    return out


def _centres(radius: int) -> list[int]:
    """Where 3-wide blocks stand that cover `-radius .. radius`; they may overlap."""
    return sorted({min(at, radius - 1) for at in range(1 - radius, radius + 2, 3)})


class _Spread:
    """Maps in a buffer with zeros around each, so that a move by some pixels is another start in memory."""

    def __init__(self, buffer: Tensor, guard: int, shape: tuple[int, int, int, int]) -> None:
        self.buffer, self.guard, self.shape = buffer, guard, shape

    def at(self, row: int, column: int) -> Tensor:
        """`[N, C, H', W']`, channels last: pixel (h, w) is that of (h + row, w + column)."""
        _, channels, height, width = self.shape
        strides = (height * width * channels, 1, width * channels, channels)
        start = self.guard + (row * width + column) * channels
        return self.buffer.as_strided(self.shape, strides, start)


def _spread(x: Tensor, reach: int, dilation: int) -> _Spread:
    """Pixels of each position modulo `dilation` as maps of their own, one zero before and `reach` behind.

    One zero on each side is what a 3x3 block reads beyond a map; with those of the next line, a map moved by
    `reach` pixels still reads zeros.
    """
    batch, channels, *sides = x.shape
    even = [side + -side % dilation for side in sides]
    if even != sides:
        x = F.pad(x, (0, even[1] - sides[1], 0, even[0] - sides[0]))
    inner = [side // dilation for side in even]
    height, width = (side + 1 + reach for side in inner)
    count = dilation * dilation * batch
    guard, size = reach * (width + 1) * channels, count * height * width * channels
    buffer = x.new_zeros(size + 2 * guard)
    maps = buffer[guard : guard + size].view(dilation, dilation, batch, height, width, channels)
    split = x.permute(0, 2, 3, 1).reshape(batch, inner[0], dilation, inner[1], dilation, channels)
    maps[:, :, :, 1 : 1 + inner[0], 1 : 1 + inner[1]] = split.permute(2, 4, 0, 1, 3, 5)
    return _Spread(buffer, guard, (count, channels, height, width))


def _forward(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, padding=padding, dilation=dilation, groups=x.shape[1])


def _library(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int, wanted: tuple[bool, bool], *, stride: int = 1
) -> tuple[Tensor | None, Tensor | None]:
    """The library's gradients of the input and of the kernels, as far as wanted."""
    padding = dilation * (weight.shape[-1] // 2)
    found = torch.ops.aten.convolution_backward(
        *(grad, x, weight, None, [stride] * 2, [padding] * 2, [dilation] * 2),
        *(False, [0, 0], x.shape[1], [*wanted, False]),
    )
    return found[0], found[1]
