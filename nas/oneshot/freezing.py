"""Operation-level early stopping: operations whose training no longer helps validation stop learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.oneshot.gradients import flat
from nas.oneshot.supernet import Supernet


@dataclass(frozen=True)
class Freezing:
    """OLES (Jiang et al., NeurIPS 2023): gradient matching of each operation, and when it is frozen.

    The match of an operation is the cosine between the gradients of training and validation loss with respect
    to its weights, averaged over `steps` steps. Below `threshold` its weights are trained no further; its
    alphas still are. Parameter-free operations are never frozen.
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

    frozen: paths of the frozen ones inside the supernet's network.
    """

    def __init__(self, supernet: Supernet, settings: Freezing) -> None:
        self.settings = settings
        self.operations = operations(supernet)
        self.frozen: list[str] = []
        self.steps = 0
        device = supernet.alphas[0].device
        self._sums = torch.zeros(len(self.operations), device=device)

    def watch(self, validation: Mapping[Tensor, Tensor]) -> None:
        """Takes in one step: the weights' training gradients are in place, those of validation are given."""
        self._sums += torch.stack([_cosine(weights, validation) for weights in self.operations.values()])
        self.steps += 1
        if self.steps < self.settings.steps:
            return
        matches = (self._sums / self.steps).tolist()
        for (path, _), match in zip(self.operations.items(), matches, strict=True):
            if match < self.settings.threshold and path not in self.frozen:
                self.frozen.append(path)
        self._sums.zero_()
        self.steps = 0

    def hold(self) -> None:
        """Drops the gradients of what is frozen, so that no optimizer moves it."""
        for path in self.frozen:
            for weight in self.operations[path]:
                weight.grad = None

    def state(self) -> Mapping[str, Any]:
        """What the next step depends on."""
        return {"frozen": list(self.frozen), "steps": self.steps, "sums": self._sums}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state."""
        self.frozen, self.steps = list(state["frozen"]), state["steps"]
        self._sums.copy_(state["sums"])


def operations(supernet: Supernet) -> dict[str, list[nn.Parameter]]:
    """The weights of every candidate that has any, by its path; each place of a decision counts by itself."""
    found = {}
    for place, mixed in supernet.network.named_modules():
        if mixed in set(supernet.mixed()):
            for i, op in enumerate(mixed.ops):
                if weights := list(op.parameters()):
                    found[f"{place}.ops.{i}"] = weights
    return found


def _cosine(weights: Sequence[nn.Parameter], validation: Mapping[Tensor, Tensor]) -> Tensor:
    """The cosine of training and validation gradient; 1, which freezes nothing, where there is none."""
    pairs = [(w.grad, validation[w]) for w in weights if w.grad is not None and w in validation]
    if not pairs:
        return torch.ones((), device=weights[0].device)
    ours, theirs = flat([a for a, _ in pairs]), flat([b for _, b in pairs])
    norms = ours.norm() * theirs.norm()
    return torch.where(norms > 0, ours @ theirs / norms.clamp_min(1e-30), 1.0)
