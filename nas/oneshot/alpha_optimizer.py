"""How the alphas follow their gradients: by Adam, or multiplicatively on the simplex of mixture weights.

A rule is a frozen value with its settings; `begin` makes the optimizer that moves the alphas of a search.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from nas.errors import ConfigError


@dataclass(frozen=True)
class Update(ABC):
    """A rule and its settings.

    lr: learning rate.
    """

    lr: float = 3e-4

    on_simplex: ClassVar[bool] = False
    """Whether the gradient is taken with respect to the mixture weights instead of the alphas."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"alphas: lr is {self.lr}, but must be a finite number above 0")

    @abstractmethod
    def begin(self, alphas: Sequence[nn.Parameter]) -> Optimizer:
        """An optimizer of the alphas before its first step."""


@dataclass(frozen=True)
class Adam(Update):
    """Adam with a small first momentum (the code of DARTS).

    weight_decay: L2 penalty. clip: largest L2 norm of the whole gradient (P-DARTS); 0 is off.
    """

    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 1e-3
    clip: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"alphas: betas are {self.betas}, but must be in [0, 1)")
        for name in ("weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"alphas: {name} is {getattr(self, name)}, but must be a finite number of at least 0"
                )

    def begin(self, alphas: Sequence[nn.Parameter]) -> Optimizer:
        """Torch's Adam with fresh moments."""
        cuda = alphas[0].device.type == "cuda"
        adam = torch.optim.Adam(
            alphas,
            lr=self.lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
            # Otherwise Python counts the steps, and a CUDA graph would not.
            fused=True if cuda else None,
            # Without it, Adam refuses to be captured as a graph.
            capturable=cuda,
        )
        if self.clip:

            def clip(*_: object) -> None:
                nn.utils.clip_grad_norm_(alphas, self.clip)

            adam.register_step_pre_hook(clip)
        return adam


@dataclass(frozen=True)
class ExponentiatedGradient(Update):
    """GAEA (Li et al., ICLR 2021), algorithm 1: `θ ← θ · exp(-lr · ∂L/∂θ)`, each row scaled to sum to 1.

    θ is the mixture, a softmax of the alphas, which therefore move by `-lr · ∂L/∂θ`. Deviation: alphas are
    kept so that every row has a log-sum-exp of 0; the floor of 1e-5 under θ in the released code is not
    needed here.
    """

    lr: float = 0.1

    on_simplex: ClassVar[bool] = True

    def begin(self, alphas: Sequence[nn.Parameter]) -> Optimizer:
        """An optimizer without any state."""
        return _Exponentiated(alphas, {"lr": self.lr})


class _Exponentiated(Optimizer):
    """Moves alphas along the gradients of their mixture weights."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - torch's signature
        for group in self.param_groups:
            for alphas in group["params"]:
                alphas.sub_(group["lr"] * alphas.grad)
                # Edges of different nodes share one vector; their softmax does not see this shift.
                alphas.sub_(alphas.logsumexp(-1, keepdim=True))
