"""Relaxations: alphas `[E, O]` to mixture weights `[E, O]`, one row per decision; and what perturbs them.

An option that is out of the race has an alpha of minus infinity and gets no weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.errors import ConfigError


@dataclass(frozen=True)
class Relaxation(ABC):
    """How a supernet mixes its options.

    One of your own is a frozen dataclass with a `mix`, as in `examples/plug/relaxation.py`.
    """

    samples_one_path: ClassVar[bool] = False
    """Whether exactly one option of a row has a weight other than 0, so that only it need be run."""
    competes: ClassVar[bool] = True
    """Whether a decision's options compete for its weight, so that one which does nothing can win."""
    draws: ClassVar[bool] = False
    """Whether the mixture weights are random."""

    @abstractmethod
    def mix(self, alphas: Tensor, progress: float | Tensor) -> Tensor:
        """The weights `[E, O]` of one training step; may draw from torch's global stream.

        progress: share of the search that is done, in [0, 1], for what is annealed.
        """

    def strength(self, alphas: Tensor) -> Tensor:
        """How much each option is preferred, `[E, O]` in [0, 1]: what is discretised."""
        return alphas.softmax(-1)

    def expected(self, alphas: Tensor) -> Tensor:
        """The weights `[E, O]` that the mixture has in the mean, without any draw: what is validated."""
        return self.strength(alphas)


@dataclass(frozen=True)
class Softmax(Relaxation):
    """DARTS (Liu et al., ICLR 2019), equation 2."""

    def mix(self, alphas: Tensor, progress: float | Tensor) -> Tensor:  # noqa: ARG002 - not annealed
        """`exp(α_o) / Σ exp(α)`."""
        return alphas.softmax(-1)


@dataclass(frozen=True)
class GumbelSoft(Relaxation):
    """SNAS (Xie et al., ICLR 2019): a concrete distribution (Maddison et al. 2017) whose temperature falls.

    start, end: temperature at the start and the end of the search, linear in between. Deviation: the paper
      does not give its schedule; DrNAS' code for SNAS goes from 10 to 1.
    """

    start: float = 10.0
    end: float = 1.0

    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.end <= self.start < float("inf"):
            raise ConfigError(
                f"{type(self).__name__}: temperatures go from {self.start} to {self.end}; wanted finite ones "
                "above 0 that do not rise"
            )

    def temperature(self, progress: float | Tensor) -> float | Tensor:
        """Linear in the progress."""
        return self.start + (self.end - self.start) * progress

    def mix(self, alphas: Tensor, progress: float | Tensor) -> Tensor:
        """`softmax((log softmax(α) + g) / τ)` with `g` standard Gumbel noise."""
        # The logarithm of an exponential variate is minus a Gumbel one.
        noise = -torch.empty_like(alphas).exponential_().log()
        return ((alphas.log_softmax(-1) + noise) / self.temperature(progress)).softmax(-1)


@dataclass(frozen=True)
class GumbelHard(GumbelSoft):
    """GDAS (Dong & Yang, CVPR 2019), §3.2: one sampled option a row, with the gradient of the soft sample.

    The outputs of the other options are not computed. As in the released code they count as the constant 1 in
    the gradient, see `nas.space.mixed_op.Chosen`.
    """

    end: float = 0.1

    samples_one_path: ClassVar[bool] = True

    def mix(self, alphas: Tensor, progress: float | Tensor) -> Tensor:
        """One-hot rows in value, soft ones in gradient (straight-through)."""
        soft = super().mix(alphas, progress)
        return _one_hot(soft) - soft.detach() + soft


@dataclass(frozen=True)
class Dirichlet(Relaxation):
    """DrNAS (Chen et al., ICLR 2021), §3.2: mixture weights drawn from Dir(elu(α) + 1), reparametrised."""

    draws: ClassVar[bool] = True

    def mix(self, alphas: Tensor, progress: float | Tensor) -> Tensor:  # noqa: ARG002 - not annealed
        """A draw, with the gradients of gamma variates with respect to their concentrations."""
        alive = alphas > -torch.inf
        # A Dirichlet variate is a row of gamma variates over their sum; absent options take no part in it.
        concentration = torch.where(alive, self._concentration(alphas), 1.0)
        gamma = torch._standard_gamma(concentration).clamp_min(torch.finfo(alphas.dtype).tiny) * alive
        return gamma / gamma.sum(-1, keepdim=True)

    def strength(self, alphas: Tensor) -> Tensor:
        """The mean of the distribution."""
        concentration = self._concentration(alphas)
        return concentration / concentration.sum(-1, keepdim=True)

    def _concentration(self, alphas: Tensor) -> Tensor:
        """`elu(α) + 1`, 0 for an absent option."""
        return F.elu(alphas) + 1


@dataclass(frozen=True)
class Sigmoid(Relaxation):
    """FairDARTS (Chu et al., ECCV 2020), §3.1: every option has its own gate, so that none competes.

    A supernet takes `none` out of the race: its gate would get no gradient, and chance would decide.
    """

    competes: ClassVar[bool] = False

    def mix(self, alphas: Tensor, progress: float | Tensor) -> Tensor:  # noqa: ARG002 - not annealed
        """`σ(α)`; a row need not sum to 1."""
        return alphas.sigmoid()

    def strength(self, alphas: Tensor) -> Tensor:
        """The same `σ(α)`."""
        return alphas.sigmoid()


@dataclass(frozen=True)
class Uniform(Relaxation):
    """All options alike, whatever the alphas say: those only record what was found out otherwise.

    As IS-DARTS (He et al., AAAI 2024) and DARTS-PT with fixed alphas (Wang et al., ICLR 2021) do.
    """

    def mix(self, alphas: Tensor, progress: float | Tensor) -> Tensor:  # noqa: ARG002 - not annealed
        """1 over the number of options that are left."""
        return self.expected(alphas)

    def expected(self, alphas: Tensor) -> Tensor:
        """The same."""
        alive = (alphas > -torch.inf).to(alphas.dtype)
        return alive / alive.sum(-1, keepdim=True)


def _one_hot(rows: Tensor) -> Tensor:
    """1 at the largest entry of each row, else 0."""
    return torch.zeros_like(rows).scatter_(-1, rows.detach().argmax(-1, keepdim=True), 1.0)


Function = Callable[[Tensor], Tensor]
"""Of mixture weights `[D, O]`: the training loss of the coming step, or its gradient `[D, O]`."""


@dataclass(frozen=True)
class Perturbation(ABC):
    """Moves mixture weights by at most a radius in each coordinate, then puts the rows back on the simplex.

    start, end: the radius at the start and the end of the search, linear in between (the code of SDARTS).
    """

    start: float = 0.03
    end: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ConfigError(
                f"{type(self).__name__}: the radius goes from {self.start} to {self.end}; wanted numbers "
                "from 0 to 1 that do not fall"
            )

    def radius(self, progress: Tensor) -> Tensor:
        """Linear in the progress, a scalar in [0, 1]."""
        return self.start + (self.end - self.start) * progress

    @abstractmethod
    def __call__(self, weights: Tensor, loss: Function, gradient: Function, progress: Tensor) -> Tensor:
        """The perturbed mixture weights, without gradient; may draw from torch's global stream at first."""


@dataclass(frozen=True)
class RandomPerturbation(Perturbation):
    """SDARTS-RS: a uniform draw from the cube around the mixture."""

    def __call__(self, weights: Tensor, loss: Function, gradient: Function, progress: Tensor) -> Tensor:  # noqa: ARG002
        """`weights + U(-radius, radius)`, on the simplex."""
        return _randomly_moved(weights, self.radius(progress))


@dataclass(frozen=True)
class AdversarialPerturbation(Perturbation):
    """SDARTS-ADV: the mixture in the cube that is worst for the training loss.

    steps: of projected gradient ascent from a random start, each of 2 radius / steps in every coordinate
      (Madry et al., ICLR 2018). As in the released code, the mixture stays when none is worse.

    Deviation: batch-norm uses the batch's statistics here, where the code uses the running ones.
    """

    steps: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ConfigError(f"{type(self).__name__}: steps is {self.steps}, but must be at least 1")

    def __call__(self, weights: Tensor, loss: Function, gradient: Function, progress: Tensor) -> Tensor:
        """The worst mixture found."""
        radius = self.radius(progress)
        moved = _randomly_moved(weights, radius)
        for _ in range(self.steps):
            uphill = moved + 2 * radius / self.steps * gradient(moved).sign()
            moved = on_simplex(weights + (uphill - weights).clamp(-radius, radius), weights)
        return torch.where(loss(moved) >= loss(weights), moved, weights)


def on_simplex(rows: Tensor, before: Tensor) -> Tensor:
    """Rows `[E, O]` cut to [0, 1] and scaled to sum to 1; an option that had no weight gets none.

    A row of which nothing is left becomes its largest entry alone (the code of SDARTS).
    """
    alive = before > 0
    cut = torch.where(alive, rows.clamp(0, 1), 0.0)
    total = cut.sum(-1, keepdim=True)
    alone = _one_hot(torch.where(alive, rows, -torch.inf))
    return torch.where(total > 0, cut / total.clamp_min(torch.finfo(rows.dtype).tiny), alone)


def _randomly_moved(weights: Tensor, radius: Tensor) -> Tensor:
    """Mixture weights moved by a uniform draw from the cube, on the simplex."""
    return on_simplex(weights + (2 * torch.rand_like(weights) - 1) * radius, weights)
