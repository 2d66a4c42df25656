"""Regularisers: what is added to the validation loss that the alphas descend.

Each is a function of the alphas `[E, O]` (minus infinity where an option is out of the race), of the mixture
weights `[E, O]` that they give, and of the progress of the search in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.errors import ConfigError

Rows = Sequence[Tensor]
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
    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:
        """A scalar, smaller is better."""


@dataclass(frozen=True)
class BetaDecay(Regularizer):
    """β-DARTS (Ye et al., CVPR 2022), the Beta-Decay loss: `λ · mean over edges of log Σ exp α`.

    end: λ at the end of the search; it grows linearly from 0 (the code: 0 to 50 in 100 epochs, so 25 in 50).
    """

    end: float = 25.0

    reads_mixture: ClassVar[bool] = False

    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:  # noqa: ARG002
        """λ times the mean smooth maximum."""
        return self.end * progress * torch.cat([rows.logsumexp(-1) for rows in alphas]).mean()


@dataclass(frozen=True)
class ZeroOne(Regularizer):
    """FairDARTS (Chu et al., ECCV 2020), the zero-one loss: away from 1/2 by `-w · mean (σ(α) - 1/2)²`."""

    weight: float = 10.0

    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:  # noqa: ARG002
        """Between -w/4 and 0."""
        alive = torch.cat([rows.flatten() for rows in alphas]) > -torch.inf
        squares = (torch.cat([rows.flatten() for rows in weights]) - 0.5).square()
        return -self.weight * torch.where(alive, squares, 0.0).sum() / alive.sum()


@dataclass(frozen=True)
class L2Anchor(Regularizer):
    """DrNAS (Chen et al., ICLR 2021), §3.2: keeps the concentrations near 1, `scale / 2 · Σ α²`.

    At α = 0 the concentration elu(α) + 1 is 1, the uniform distribution over the simplex. Its gradient is
    that of a weight decay of `scale`, which is how the code does it.
    """

    scale: float = 1e-3

    reads_mixture: ClassVar[bool] = False

    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:  # noqa: ARG002
        """The squared distance."""
        return self.scale / 2 * torch.stack([_finite(rows).square().sum() for rows in alphas]).sum()


@dataclass(frozen=True)
class KLAnchor(Regularizer):
    """DrNAS, its other penalty: `scale · Σ over edges KL(Dir(c) ‖ Dir(1))` with c = elu(α) + 1, in nats.

    Of the options that are there, n in a row, a divergence is
    `log Γ(Σc) - log Γ(n) - Σ log Γ(c) + Σ (c - 1) (ψ(c) - ψ(Σc))`.
    """

    scale: float = 1e-3

    reads_mixture: ClassVar[bool] = False

    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:  # noqa: ARG002
        """The sum of the divergences."""
        return self.scale * torch.stack([self._divergence(rows).sum() for rows in alphas]).sum()

    def _divergence(self, alphas: Tensor) -> Tensor:
        alive = alphas > -torch.inf
        c = torch.where(alive, F.elu(_finite(alphas)) + 1, 1.0)
        total, count = (c * alive).sum(-1, keepdim=True), alive.sum(-1, keepdim=True).to(c.dtype)
        each = (c - 1) * (c.digamma() - total.digamma()) - c.lgamma()
        return (total.lgamma() - count.lgamma()).squeeze(-1) + (each * alive).sum(-1)


@dataclass(frozen=True)
class Entropy(Regularizer):
    """The mean entropy of the mixtures, in nats, whose weight grows linearly from 0: decisions become sharp.

    A negative `end` keeps them open instead.
    """

    end: float = 0.1

    def __call__(self, alphas: Rows, weights: Rows, progress: Progress) -> Tensor:  # noqa: ARG002
        """`end · progress · mean over decisions of -Σ p log p`."""
        # The logarithm of a weight of 0 has no gradient that a product with 0 could make finite.
        rows = torch.cat([-(row * row.clamp_min(1e-12).log()).sum(-1) for row in weights])
        return self.end * progress * rows.mean()


def _finite(alphas: Tensor) -> Tensor:
    return torch.where(alphas > -torch.inf, alphas, 0.0)
