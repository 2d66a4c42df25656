"""Gradients with respect to what a loss may not depend on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients(
    loss: Tensor, inputs: Sequence[Tensor], *, retain_graph: bool = False, create_graph: bool = False
) -> list[Tensor]:
    """The gradient of `loss` for each input, zero for what it does not depend on."""
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found: Sequence[Tensor | None] = torch.autograd.grad(
        loss,
        list(inputs),
        allow_unused=True,
        retain_graph=retain_graph or create_graph,
        create_graph=create_graph,
    )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])
