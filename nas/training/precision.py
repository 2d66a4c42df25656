"""The arithmetic of a forward pass, and the memory layout that it is computed fastest in."""

from __future__ import annotations

import torch
from torch import Tensor

from nas.training.recipe import Precision


def precision(device: torch.device, wanted: Precision = "auto") -> torch.autocast:
    """The arithmetic of a forward pass: as wanted, or bfloat16 where safe on CUDA and float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half(device, wanted))


def is_half(device: torch.device, wanted: Precision = "auto") -> bool:
    """Whether that arithmetic is bfloat16."""
    return device.type == "cuda" if wanted == "auto" else wanted == "bfloat16"


def to_layout(x: Tensor) -> Tensor:
    """A batch `[B, C, H, W]` in the memory layout that is computed fastest in, on CPUs too: channels last."""
    return x.contiguous(memory_format=torch.channels_last)
