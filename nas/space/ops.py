"""Primitives by name: the operations of the published cell spaces, each `(c_in, c_out, stride) -> Module`.

Every primitive maps `[B, c_in, H, W]` to `[B, c_out, ceil(H / stride), ceil(W / stride)]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import SpaceError, unknown
from nas.space.batching import Batched, Rule, Stack, joined, norm_key, normalise
from nas.space.choosers import Candidate, Primitive, Zero


def stem(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    """A 3x3 convolution and batch-norm; of a stride beyond 2 after averaging, so that every pixel counts."""
    conv = nn.Conv2d(c_in, c_out, 3, min(stride, 2), padding=1, bias=False)
    averaged = [nn.AvgPool2d(stride // 2, ceil_mode=True)] if stride > 2 else []
    return nn.Sequential(*averaged, conv, nn.BatchNorm2d(c_out))


class FactorizedReduce(nn.Module, Batched):
    """Halves the resolution by two 1x1 convolutions that look at the even and at the odd pixels.

    As in the code of DARTS (Liu et al. 2019); an odd side is padded by one pixel first.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out - c_out // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, c_in, H, W]` to `[B, c_out, ceil(H / 2), ceil(W / 2)]`."""
        x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        out: Tensor = self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))
        return out

    def rule(self) -> Rule | None:
        """Of equal shapes."""
        norm = norm_key(self.norm)
        key = (type(self), self.even.weight.shape, self.odd.weight.shape, norm)
        return None if norm is None else Rule(key, _reduce_together)


def _reduce_together(modules: Sequence[nn.Module], stack: Stack) -> Stack:
    """One convolution of stride 2 whose 2x2 kernels look at the even, and others at the odd pixel."""
    reduces = cast(Sequence[FactorizedReduce], modules)
    x = F.relu(stack.x)
    odd_sides = (x.shape[3] % 2, x.shape[2] % 2)
    if any(odd_sides):  # to pad by nothing would copy the map
        x = F.pad(x, (0, odd_sides[0], 0, odd_sides[1]))
    even, odd = ([getattr(reduce, name).weight for reduce in reduces] for name in ("even", "odd"))
    kernels = [_stacked(even, (0, 1, 0, 1)), _stacked(odd, (1, 0, 1, 0))]
    weight = torch.cat(kernels, dim=1).flatten(0, 1)
    y = F.conv2d(x, weight, stride=2, groups=1 if stack.shared else len(reduces))
    return normalise([reduce.norm for reduce in reduces], Stack(y, len(reduces), shared=False))


def _stacked(kernels: Sequence[Tensor], zeros: tuple[int, ...]) -> Tensor:
    """[G, O, I, K, K] Kernels of equal shape, with zeros around them."""
    return F.pad(torch.unflatten(joined(kernels), 0, (len(kernels), -1)), zeros)


class MixtureNorm(nn.BatchNorm2d, Batched):
    """A batch-norm without affine part that works only inside a supernet and passes through elsewhere.

    DARTS normalises its pools while they compete with other operations, and leaves the norm out of the
    network that is trained in the end.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)
        self.active = False

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]`, normalised while active."""
        return super().forward(x) if self.active else x

    def rule(self) -> Rule | None:
        """As batch-norms of equal settings, while active."""
        norm = norm_key(self)
        key = (type(self), self.active, norm)
        return None if norm is None else Rule(key, _normalise_active, shares=True)


def _normalise_active(modules: Sequence[nn.Module], stack: Stack) -> Stack:
    """As batch-norms, while active."""
    norms = cast(Sequence[MixtureNorm], modules)
    return normalise(norms, stack) if norms[0].active else stack


def relu_conv_bn(c_in: int, c_out: int, stride: int = 1, *, kernel: int = 1) -> nn.Module:
    """ReLU, convolution, batch-norm: NAS-Bench-201's `nor_conv` and the preprocessing of DARTS cells."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(c_out))


def dil_conv(c_in: int, c_out: int, stride: int = 1, *, kernel: int, dilation: int = 2) -> nn.Module:
    """ReLU, dilated depthwise convolution, 1x1 convolution, batch-norm."""
    return nn.Sequential(nn.ReLU(), *_depthwise(c_in, c_out, stride, kernel=kernel, dilation=dilation))


def sep_conv(c_in: int, c_out: int, stride: int = 1, *, kernel: int) -> nn.Module:
    """Two depthwise-separable convolutions in a row, the stride in the first (Liu et al. 2019, §3.1)."""
    first = _depthwise(c_in, c_in, stride, kernel=kernel)
    second = _depthwise(c_in, c_out, 1, kernel=kernel)
    return nn.Sequential(nn.ReLU(), *first, nn.ReLU(), *second)


def _depthwise(c_in: int, c_out: int, stride: int, *, kernel: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.Conv2d(c_in, c_in, kernel, stride, padding, dilation, groups=c_in, bias=False),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out),
    ]


def conv_7x1_1x7(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    """ReLU, a 1x7 and a 7x1 convolution, batch-norm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c_in, c_out, (1, 7), (1, stride), (0, 3), bias=False),
        nn.Conv2d(c_out, c_out, (7, 1), (stride, 1), (3, 0), bias=False),
        nn.BatchNorm2d(c_out),
    )


def skip_connect(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    """The identity where shapes allow it, else a `FactorizedReduce` or a 1x1 convolution.

    The former halves, and needs two channels to divide among its convolutions.
    """
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return FactorizedReduce(c_in, c_out) if stride == 2 and c_out > 1 else relu_conv_bn(c_in, c_out, stride)


def _pool(pool: Callable[[int], nn.Module], c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    if c_in == c_out:
        return pool(stride)
    return nn.Sequential(relu_conv_bn(c_in, c_out), pool(stride))


def _zero(c_in: int, c_out: int, stride: int = 1) -> nn.Module:  # noqa: ARG001 - one signature for all
    return Zero(c_out, stride)


PRIMITIVES: dict[str, Primitive] = {
    "none": _zero,
    "skip_connect": skip_connect,
    "max_pool_3x3": partial(_pool, partial(nn.MaxPool2d, 3, padding=1)),
    "avg_pool_3x3": partial(_pool, partial(nn.AvgPool2d, 3, padding=1, count_include_pad=False)),
    "nor_conv_1x1": partial(relu_conv_bn, kernel=1),
    "nor_conv_3x3": partial(relu_conv_bn, kernel=3),
    "nor_conv_5x5": partial(relu_conv_bn, kernel=5),
    "nor_conv_7x7": partial(relu_conv_bn, kernel=7),
    "sep_conv_3x3": partial(sep_conv, kernel=3),
    "sep_conv_5x5": partial(sep_conv, kernel=5),
    "sep_conv_7x7": partial(sep_conv, kernel=7),
    "dil_conv_3x3": partial(dil_conv, kernel=3),
    "dil_conv_5x5": partial(dil_conv, kernel=5),
    "conv_7x1_1x7": conv_7x1_1x7,
}


def candidates(names: Iterable[str], c_in: int, c_out: int, stride: int = 1) -> dict[str, Candidate]:
    """Unbuilt primitives by name, ready to be asked of a chooser.

    Raises:
        SpaceError: for a name that is no primitive, with the nearest one.
    """
    names = list(names)
    for name in names:
        if name not in PRIMITIVES:
            raise SpaceError(unknown("primitive", name, PRIMITIVES))
    return {name: Candidate(PRIMITIVES[name], c_in, c_out, stride) for name in names}
