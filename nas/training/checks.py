"""What a training needs to begin and to be taken up again, and what its numbers must stay."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.task import Split, Task
from nas.errors import ConfigError, DataError, TrialError
from nas.training.recipe import Recipe

CHECK_STEPS = 50
"""Steps from one look for divergence to the next: reading a number back from the device waits for it."""


def shared_device(parameters: Mapping[str, nn.Parameter], split: Split) -> torch.device:
    """Where the parameters of a network and the images that it learns from are.

    Raises:
        TrialError: when there are no parameters to train.
        DataError: when there are too few images.
        ConfigError: when they are on different devices.
    """
    if not parameters:
        raise TrialError("no-grad", "train: the network has no trainable parameter")
    if len(split) < 2:
        raise DataError(f"train: the split has {len(split)} images, but batch statistics need at least 2")
    device = next(iter(parameters.values())).device
    if split.x.device != device:
        raise ConfigError(
            f"train: the network is on {device}, the images on {split.x.device}; "
            f"call task.to({str(device)!r})"
        )
    return device


def described(network: nn.Module, task: Task, split: Split, recipe: Recipe, *, seed: int) -> dict[str, Any]:
    """What must be the same for a saved state to be taken up again, as plain values."""
    layout = [(n, tuple(t.shape), str(t.dtype)) for n, t in network.state_dict().items()]
    return {
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "network": hashlib.sha256(repr(layout).encode()).hexdigest(),
        "data": task.fingerprint,
        "split": len(split),
    }


def check_depends(loss: Tensor, step: int) -> None:
    """Raises TrialError unless the loss of a step depends on a parameter."""
    if not loss.requires_grad:
        raise TrialError("no-grad", f"train: the loss of step {step} depends on no trainable parameter")


def check_finite(
    loss_sum: Tensor, parameters: Mapping[str, nn.Parameter], *, step: int, epoch: int, lr: float
) -> None:
    """Raises TrialError when a loss or a weight has become infinite or no number; waits for the device.

    step, epoch, lr: of the last step done; epochs are counted from 1.
    """
    weights = nn.utils.get_total_norm(parameters.values())
    if not (loss_sum + weights).isfinite():
        raise TrialError(
            "nan",
            f"train: loss or weights are not finite at step {step}, epoch {epoch}, lr {lr:.3g}; "
            "lower the learning rate",
        )
