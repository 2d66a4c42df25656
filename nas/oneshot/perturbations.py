"""Perturbations: mixtures near the present one that the weights are trained under (SDARTS).

Weights that work in a whole neighbourhood of the mixture still work when it is discretised
(Chen & Hsieh, ICML 2020, §4: `min_w E_δ L(w, A + δ)` at random, `min_w max_δ L(w, A + δ)` adversarially).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.errors import ConfigError
from nas.training.gradients import gradients

Points = Sequence[Tensor]
"""Mixture weights, `[E, O]` for each set of decisions with equally many options."""
Loss = Callable[[Points], Tensor]
"""The training loss of the coming step under any mixture."""


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
    def __call__(self, points: Points, loss: Loss, progress: Tensor) -> list[Tensor]:
        """The perturbed mixture weights, without gradient; may draw from torch's global stream at first."""


@dataclass(frozen=True)
class RandomPerturbation(Perturbation):
    """SDARTS-RS: a uniform draw from the cube around the mixture."""

    def __call__(self, points: Points, loss: Loss, progress: Tensor) -> list[Tensor]:  # noqa: ARG002
        """`points + U(-radius, radius)`, on the simplex."""
        return _moved(points, self.radius(progress))


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

    def __call__(self, points: Points, loss: Loss, progress: Tensor) -> list[Tensor]:
        """The worst mixture found."""
        radius = self.radius(progress)
        clean = [point.detach() for point in points]
        moved = _moved(clean, radius)
        for _ in range(self.steps):
            leaves = [point.requires_grad_() for point in moved]
            found = gradients(loss(leaves), leaves)
            moved = [
                on_simplex(centre + (leaf + step - centre).clamp(-radius, radius), centre)
                for centre, leaf, step in zip(
                    clean,
                    [leaf.detach() for leaf in leaves],
                    [2 * radius / self.steps * gradient.sign() for gradient in found],
                    strict=True,
                )
            ]
        with torch.no_grad():
            worse = loss(moved) >= loss(clean)
            return [torch.where(worse, point, centre) for point, centre in zip(moved, clean, strict=True)]


def on_simplex(rows: Tensor, before: Tensor) -> Tensor:
    """Rows `[E, O]` cut to [0, 1] and scaled to sum to 1; an option that had no weight gets none.

    A row of which nothing is left becomes its largest entry alone (the code of SDARTS).
    """
    alive = before > 0
    cut = torch.where(alive, rows.clamp(0, 1), 0.0)
    total = cut.sum(-1, keepdim=True)
    largest = torch.where(alive, rows, -torch.inf).argmax(-1, keepdim=True)
    alone = torch.zeros_like(rows).scatter_(-1, largest, 1.0)
    return torch.where(total > 0, cut / total.clamp_min(torch.finfo(rows.dtype).tiny), alone)


def _moved(points: Points, radius: Tensor) -> list[Tensor]:
    """Each of them moved by a uniform draw from the cube, on the simplex."""
    noises = [(2 * torch.rand_like(point) - 1) * radius for point in points]
    return [on_simplex(point + noise, point) for point, noise in zip(points, noises, strict=True)]
