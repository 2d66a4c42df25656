"""How the alphas move: by Adam, or multiplicatively on the simplex."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import ConfigError


@dataclass(frozen=True)
class Update(ABC):
    """A rule and its settings.

    lr: learning rate.
    """

    lr: float = 3e-4

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"alphas: lr is {self.lr}, but must be a finite number above 0")

    @property
    def on_simplex(self) -> bool:
        """Whether the gradient is taken with respect to the mixture weights instead of the alphas."""
        return False

    @abstractmethod
    def begin(self, alphas: Sequence[nn.Parameter]) -> AlphaOptimizer:
        """A run of this rule."""


class AlphaOptimizer(ABC):
    """A rule at work on the alphas."""

    @abstractmethod
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Moves the parameters."""

    def moved(self) -> Iterable[Tensor]:
        """All tensors that a step changes beside the parameters."""
        return ()

    def state(self) -> Mapping[str, Any]:
        """What the next step depends on beside the parameters."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - a rule may have no state
        """Goes back to a state."""


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

    def begin(self, alphas: Sequence[nn.Parameter]) -> AlphaOptimizer:
        """Adam with fresh moments."""
        return _Adam(self, alphas)


@dataclass(frozen=True)
class ExponentiatedGradient(Update):
    """GAEA (Li et al., ICLR 2021), algorithm 1: `θ ← θ · exp(-lr · ∂L/∂θ)`, each row scaled to sum to 1.

    θ is the mixture, a softmax of the alphas, which therefore move by `-lr · ∂L/∂θ`. Deviation: alphas are
    kept so that every row has a log-sum-exp of 0; the floor of 1e-5 under θ in the released code is not
    needed here.
    """

    lr: float = 0.1

    @property
    def on_simplex(self) -> bool:
        """The gradient is that of the mixture weights."""
        return True

    def begin(self, alphas: Sequence[nn.Parameter]) -> AlphaOptimizer:
        """The rule has no state."""
        return _Exponentiated(self, alphas)


class _Adam(AlphaOptimizer):
    def __init__(self, rule: Adam, alphas: Sequence[nn.Parameter]) -> None:
        self.rule, self.alphas = rule, list(alphas)
        cuda = self.alphas[0].device.type == "cuda"
        self.adam = torch.optim.Adam(
            self.alphas,
            lr=rule.lr,
            betas=rule.betas,
            weight_decay=rule.weight_decay,
            # Otherwise Python counts the steps, and a CUDA graph would not.
            fused=True if cuda else None,
            # Without it, Adam refuses to be captured as a graph.
            capturable=cuda,
        )

    def step(self, gradients: Sequence[Tensor]) -> None:
        for alpha, gradient in zip(self.alphas, gradients, strict=True):
            alpha.grad = gradient
        if self.rule.clip:
            nn.utils.clip_grad_norm_(self.alphas, self.rule.clip)
        self.adam.step()
        self.adam.zero_grad()

    def moved(self) -> Iterable[Tensor]:
        return [value for moments in self.adam.state.values() for value in moments.values()]

    def state(self) -> Mapping[str, Any]:
        return {"adam": self.adam.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        saved = dict(state["adam"])
        # Whether moments are kept for a captured step is this device's business, not that of who saved them.
        own = {name: self.adam.param_groups[0][name] for name in ("fused", "foreach", "capturable")}
        saved["param_groups"] = [group | own for group in saved["param_groups"]]
        self.adam.load_state_dict(saved)


class _Exponentiated(AlphaOptimizer):
    def __init__(self, rule: ExponentiatedGradient, alphas: Sequence[nn.Parameter]) -> None:
        self.rule, self.alphas = rule, list(alphas)

    def step(self, gradients: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for alpha, gradient in zip(self.alphas, gradients, strict=True):
                alpha.sub_(self.rule.lr * gradient)
                # Edges of different nodes share one vector; their softmax does not see this shift.
                alpha.sub_(alpha.logsumexp(-1, keepdim=True))
