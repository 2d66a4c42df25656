"""Operation-level early stopping (OLES): operations that no longer help validation stop learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.oneshot.supernet import Supernet
from nas.space.mixed_op import MixedOp
from nas.space.ops import FactorizedReduce


@dataclass(frozen=True)
class Freezing:
    """OLES (Jiang et al., NeurIPS 2023): gradient matching of each operation, and when it is frozen.

    The match of an operation is the cosine between the gradients of training and validation loss with respect
    to its weights, averaged over `steps` steps. As in the code, by which the threshold is meant, it is that
    of each tensor along its first dimension, and a mean over the others and over tensors. Below `threshold`
    its weights are trained no further; its alphas still are. Operations without weights, and skips that
    reduce, are never frozen.

    Deviation from the code: both gradients are taken at the same weights, where it compares that of a
    training step with that of the next validation step.
    """

    steps: int = 20
    threshold: float = 0.4

    def __post_init__(self) -> None:
        if self.steps < 1 or not -1 <= self.threshold <= 1:
            raise ConfigError(
                f"freezing: got {self.steps} steps and threshold {self.threshold}, wanted at least 1 and a "
                "cosine"
            )


class Freezer:
    """The operations of a supernet, how well their gradients match, and which are frozen.

    operations: the weights of each, by its path inside the supernet's network. weights: all of them.
    validation: the gradients of the validation loss at the present step, one for each of `weights`.
    frozen: paths of the frozen operations.
    """

    def __init__(self, supernet: Supernet, settings: Freezing) -> None:
        self.settings = settings
        self.operations = operations(supernet)
        self.weights = [weight for weights in self.operations.values() for weight in weights]
        if not self.weights:
            raise ConfigError(
                f"freezing: no option of space {supernet.space.name!r} has weights that could stop learning; "
                "choose another method, or leave freezing out"
            )
        self.validation: Sequence[Tensor] = ()
        self.frozen: set[str] = set()
        self._matches = torch.zeros(len(self.operations), device=supernet.alphas.device)
        self._steps = 0

    def hold(self, *, compare: bool) -> None:
        """Takes away the gradients of what is frozen, so that the coming step leaves it as it is.

        compare: first take in the match of these gradients and those of validation; a full window is judged.
        """
        if compare:
            theirs = dict(zip(self.weights, self.validation, strict=True))
            self._matches += torch.stack([_cosine(own, theirs) for own in self.operations.values()])
            self._steps += 1
        if self._steps == self.settings.steps:
            means = (self._matches / self._steps).tolist()
            overfit = zip(self.operations, means, strict=True)
            self.frozen |= {path for path, match in overfit if match < self.settings.threshold}
            self._matches.zero_()
            self._steps = 0
        for path in self.frozen:
            for weight in self.operations[path]:
                weight.grad = None

    def state(self) -> dict[str, Any]:
        """What the next step depends on."""
        return {"frozen": sorted(self.frozen), "steps": self._steps, "matches": self._matches}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state."""
        self.frozen, self._steps = set(state["frozen"]), state["steps"]
        self._matches.copy_(state["matches"])


def operations(supernet: Supernet) -> dict[str, list[nn.Parameter]]:
    """The weights of every candidate that may be frozen, by its path; each place of a decision for itself."""
    found = {}
    for place, mixed in supernet.network.named_modules():
        if isinstance(mixed, MixedOp):
            for i, op in enumerate(mixed.ops):
                if (weights := list(op.parameters())) and not isinstance(op, FactorizedReduce):
                    found[f"{place}.ops.{i}"] = weights
    return found


def _cosine(weights: Sequence[nn.Parameter], validation: Mapping[nn.Parameter, Tensor]) -> Tensor:
    """The mean cosine of training and validation gradient; 1, which freezes nothing, where there is none."""
    pairs = [(w.grad, validation[w]) for w in weights if w.grad is not None]
    if not pairs:
        return torch.ones((), device=weights[0].device)
    return torch.stack([torch.cosine_similarity(a, b, dim=0).mean() for a, b in pairs]).mean()
