"""Batched augmentation on the images' own device, every draw from the caller's generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data.task import Task
from nas.errors import ConfigError, shown, unknown

PARTS = ("crop", "flip", "cutout")
"""What `--augment` is put together of."""


def parts_of(text: str) -> frozenset[str]:
    """The parts of an augmentation: `none`, or some of `PARTS` as in `crop+flip`.

    Raises:
        ConfigError: for any other word.
    """
    words = [] if text == "none" else [word.strip() for word in text.split("+")]
    for word in words:
        if word not in PARTS:
            raise ConfigError(f"augment {shown(text)}: {unknown('part', word, ('none', *PARTS))}")
    return frozenset(words)


@dataclass(frozen=True)
class Policy:
    """How training images are varied; all zero and off by default.

    pad: zero pixels added on each side before a random crop of the original size.
    flip: whether half of the images are mirrored left to right.
    cutout: side in pixels of the square that is blanked; 0 = none.
    """

    pad: int = 0
    flip: bool = False
    cutout: int = 0


def augment(x: Tensor, task: Task, policy: Policy, generator: torch.Generator) -> Tensor:
    """Raw images [B, C, H, W] as randomly cropped, flipped, normalised and cut-out float32 of that shape.

    Crop and flip work on raw pixels, so that padding is black; cutout comes last, so that its zeros are the
    mean colour (DeVries and Taylor 2017, section 3). The generator lives on the device of `x`.
    """
    if policy.pad or policy.flip:
        x = _moved(x, policy, generator)
    x = task.normalise(x)
    return _cutout(x, policy.cutout, generator) if policy.cutout else x


def _moved(x: Tensor, policy: Policy, generator: torch.Generator) -> Tensor:
    """Crops and mirrors in one: every pixel is read from where it is in the padded image."""
    batch, channels, height, width = x.shape
    rows, columns = (torch.arange(side, device=x.device).expand(batch, side) for side in (height, width))
    if policy.pad:
        x = F.pad(x, (policy.pad,) * 4)
        corners = (2, batch, 1)
        top, left = torch.randint(2 * policy.pad + 1, corners, generator=generator, device=x.device)
        rows, columns = rows + top, columns + left
    if policy.flip:
        mirrored = torch.rand(batch, 1, generator=generator, device=x.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    source = (rows[:, :, None] * x.shape[3] + columns[:, None, :]).view(batch, 1, height * width)
    return x.flatten(2).gather(2, source.expand(-1, channels, -1)).view(batch, channels, height, width)


def _cutout(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Zeroes, in place, a `side` x `side` square around a pixel drawn uniformly, clipped at the border."""
    batch, _, height, width = x.shape
    rows = _stripe(batch, height, side, generator, x.device)
    columns = _stripe(batch, width, side, generator, x.device)
    return x.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _stripe(batch: int, length: int, side: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Which of `length` positions lie within the square, along one axis: [B, length] bool."""
    centre = torch.randint(length, (batch, 1), generator=generator, device=device)
    offset = torch.arange(length, device=device) - (centre - side // 2)
    return (offset >= 0) & (offset < side)


def mixup(x: Tensor, y: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mixes each image with another of its batch (Zhang et al. 2018, section 2, equation 1).

    x: [B, C, H, W] normalised. y: [B]. alpha: positive; small values leave most batches nearly unmixed.
    Returns the mixed images, the labels of the partners [B], and lambda ~ Beta(alpha, alpha), one scalar
    tensor for the batch: the loss is `lambda * loss(y) + (1 - lambda) * loss(partners)`.
    """
    partner = torch.randperm(len(x), generator=generator, device=x.device)
    # In float32, variates of a small alpha underflow.
    both = torch.full((2,), alpha, dtype=torch.float64, device=x.device)
    share = torch._sample_dirichlet(both, generator)[0].to(x.dtype)
    return torch.lerp(x.index_select(0, partner), x, share), y.index_select(0, partner), share
