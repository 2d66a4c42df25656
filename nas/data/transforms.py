"""Pixels as numbers: as floats, their statistics, at another size, and how far a crop may move them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FLAT_STD = 1e-6  # below it a channel is constant, and dividing by it would only enlarge rounding errors
_PART = 4096  # images that are resized at a time


def as_float(x: Tensor) -> Tensor:
    """float32, uint8 scaled to [0, 1]."""
    return x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x.float()


def shrunk(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [N, C, H, W] at another size, same type, a part at a time to keep the float copy small."""
    parts = [F.interpolate(part.float(), size, mode="area") for part in torch.split(x, _PART)]
    return torch.cat([part.round().to(x.dtype) if x.dtype == torch.uint8 else part for part in parts])


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] of images [N, C, H, W], one channel at a time to keep the float copy small."""
    moments = [torch.std_mean(as_float(channel), correction=0) for channel in x.unbind(1)]
    std, mean = (torch.stack(values) for values in zip(*moments, strict=True))
    return mean, torch.where(std > _FLAT_STD, std, 1.0)


def usual_padding(side: int) -> int:
    """4 from 32 pixels on, as usual for CIFAR; less for smaller images: 2 at 28, 1 at 8."""
    return 4 if side >= 32 else max(1, side // 12)
