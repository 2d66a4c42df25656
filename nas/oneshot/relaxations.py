"""Relaxations: alphas `[E, O]` to mixture weights `[E, O]`, one row per decision."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Relaxation = Callable[[Tensor], Tensor]


def softmax(alphas: Tensor) -> Tensor:
    """DARTS (Liu et al. 2019), equation 2."""
    return alphas.softmax(-1)
