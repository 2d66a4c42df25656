"""Regularisers: what is added to the validation loss that the alphas descend.

Each is a function of the alphas `[D, O]` (minus infinity where an option is out of the race), of the mixture
weights `[D, O]` that they give, and of the progress of the search in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nas.errors import ConfigError

Progress = float | Tensor
"""A number, or a scalar on the alphas' device."""


@dataclass(frozen=True)
class Regularizer(ABC):
    """A term of the alphas' loss, whose numbers are finite."""

    reads_mixture: ClassVar[bool] = True
    """Whether it depends on the mixture weights, and not on the alphas alone."""

    def __post_init__(self) -> None:
        for name in (own.name for own in dataclasses.fields(self)):
            value = getattr(self, name)
            if isinstance(value, int | float) and not math.isfinite(value):
                raise ConfigError(f"{type(self).__name__}: {name} is {value}, but must be finite")

    @abstractmethod
    def __call__(self, alphas: Tensor, weights: Tensor, progress: Progress) -> Tensor:
        """A scalar, smaller is better."""


@dataclass(frozen=True)
class BetaDecay(Regularizer):
    """β-DARTS (Ye et al., CVPR 2022), the Beta-Decay loss: `λ · mean over edges of log Σ exp α`.

    end: λ at the end of the search; it grows linearly from 0 (the code: 0 to 50 in 100 epochs, so 25 in 50).
    """

    end: float = 25.0

    reads_mixture: ClassVar[bool] = False

    def __call__(self, alphas: Tensor, weights: Tensor, progress: Progress) -> Tensor:  # noqa: ARG002
        """λ times the mean smooth maximum."""
        return self.end * progress * alphas.logsumexp(-1).mean()


@dataclass(frozen=True)
class ZeroOne(Regularizer):
    """FairDARTS (Chu et al., ECCV 2020), the zero-one loss: away from 1/2 by `-w · mean (σ(α) - 1/2)²`."""

    weight: float = 10.0

    def __call__(self, alphas: Tensor, weights: Tensor, progress: Progress) -> Tensor:  # noqa: ARG002
        """Between -w/4 and 0."""
        alive = alphas > -torch.inf
        return -self.weight * torch.where(alive, (weights - 0.5).square(), 0.0).sum() / alive.sum()


@dataclass(frozen=True)
class L2Anchor(Regularizer):
    """DrNAS (Chen et al., ICLR 2021), §3.2: keeps the concentrations near 1, `scale / 2 · Σ α²`.

    At α = 0 the concentration elu(α) + 1 is 1, the uniform distribution over the simplex. Its gradient is
    that of a weight decay of `scale`, which is how the code does it.
    """

    scale: float = 1e-3

    reads_mixture: ClassVar[bool] = False

    def __call__(self, alphas: Tensor, weights: Tensor, progress: Progress) -> Tensor:  # noqa: ARG002
        """The squared distance."""
        return self.scale / 2 * _finite(alphas).square().sum()


def _finite(alphas: Tensor) -> Tensor:
    return torch.where(alphas > -torch.inf, alphas, 0.0)
