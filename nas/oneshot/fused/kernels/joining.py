"""Several maps as one, one after the other: where they are already so in memory, nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nas.oneshot.fused.kernels.maps import adjacent


def one_of(maps: Sequence[Tensor]) -> Tensor:
    """Maps `[B, C, H, W]` of one size, channels last, as one `[M * B, C, H, W]`."""
    if adjacent(maps) is None:
        return torch.cat(list(maps))
    return cast(Tensor, _Adjacent.apply(*maps))  # type: ignore[no-untyped-call]


class _Adjacent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *maps: Tensor) -> Tensor:  # noqa: ANN401 - it has no type
        ctx.count = len(maps)
        return cast(Tensor, adjacent(maps))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        return grad.chunk(ctx.count)
