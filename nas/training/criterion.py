"""The loss that a recipe asks for, of what a network gave: smoothing, mixup, auxiliary head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nas.errors import ConfigError, TrialError
from nas.training.recipe import Recipe

Output = Tensor | tuple[Tensor, Tensor | None]
"""Logits `[B, classes]`; a network in training mode may add those of its auxiliary head."""

Targets = tuple[Tensor, tuple[Tensor, Tensor] | None]
"""Labels `[B]` and, under mixup, those of the partners `[B]` with the share of the first."""


def criterion(output: Output, targets: Targets, recipe: Recipe, *, classes: int, network: str) -> Tensor:
    """The recipe's loss. network: what errors call it.

    Raises:
        ConfigError: when the recipe weighs the loss of an auxiliary head that the network lacks.
        TrialError: when the logits have another shape than `[B, classes]`.
    """
    logits, auxiliary = output if isinstance(output, tuple) else (output, None)
    loss = _cross_entropy(logits, targets, classes, recipe.label_smoothing)
    if not recipe.auxiliary:
        return loss
    if auxiliary is None:
        raise ConfigError(
            f"recipe: auxiliary is {recipe.auxiliary}, but {network} has no auxiliary head; set it to 0 or "
            "return (logits, auxiliary logits) in training mode"
        )
    return loss + recipe.auxiliary * _cross_entropy(auxiliary, targets, classes, recipe.label_smoothing)


def _cross_entropy(logits: Tensor, targets: Targets, classes: int, smoothing: float) -> Tensor:
    y, mixed = targets
    wanted = (len(y), classes)
    if tuple(logits.shape) != wanted:
        raise TrialError("build", f"train: the network gave logits {tuple(logits.shape)}, wanted {wanted}")
    logits = logits.float()
    loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
    if mixed is None:
        return loss
    partners, share = mixed
    return share * loss + (1 - share) * F.cross_entropy(logits, partners, label_smoothing=smoothing)
