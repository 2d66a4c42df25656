"""Weights taken from a supernet: an evaluator that trains nothing, and a beginning for trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nas.data.task import Task
from nas.errors import SpaceError, TrialError
from nas.evaluate.trained import Start, affordable
from nas.oneshot.path_training import score
from nas.oneshot.supernet import Supernet
from nas.space.network_morphism import mismatch
from nas.types import Trial
from nas.user_code import user_errors


@dataclass(frozen=True, eq=False)
class Inherited:
    """Validates each architecture with weights taken from a trained supernet, its batch-norm re-estimated.

    Guo et al. 2020 (SPOS), §3.4; see `nas.oneshot.path_training.score`.

    calibration: training images for the statistics.
    """

    supernet: Supernet
    task: Task
    calibration: int = 1024

    def __call__(self, trial: Trial, rng: np.random.Generator) -> Mapping[str, float]:
        """The metric of the problem on validation images, `val_loss`, `params` and `macs`."""
        seed = int(rng.integers(2**62))
        supernet = self.supernet
        with user_errors():
            counted = affordable(supernet.space, trial.genotype, self.task)
            loss, value = score(supernet, trial.genotype, self.task, calibration=self.calibration, seed=seed)
        if not math.isfinite(loss):
            raise TrialError("nan", f"the validation loss on shared weights is {loss}")
        return {
            self.task.problem.val: value,
            "val_loss": loss,
            "params": counted.params,
            "macs": counted.macs,
        }


def from_supernet(supernet: Supernet) -> Start:
    """A `Trained.start` that copies a trained supernet's weights and statistics into each fresh network.

    A supernet has no affine part of the batch-norms in cells and candidates: that begins at weight 1 and bias
    0. Before it is trained, the network computes what the supernet's path does, norms that exist only in a
    mixture (`nas.space.ops.MixtureNorm`) aside.
    """

    def start(trial: Trial, network: nn.Module) -> nn.Module:
        shared = supernet.extract(trial.genotype).state_dict()
        weights = {**_plain_affine(network), **shared}
        if differing := mismatch(network.state_dict(), weights):
            raise SpaceError(
                f"from_supernet: the supernet and the trial's network differ in {differing[:3]}; train the "
                "supernet in the space of the trials, with the same settings"
            )
        network.load_state_dict(weights)
        return network

    return start


def _plain_affine(network: nn.Module) -> dict[str, Tensor]:
    """The weight 1 and bias 0 of every affine batch-norm, by its name in the network."""
    found: dict[str, Tensor] = {}
    for path, norm in network.named_modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            found[f"{path}.weight"] = torch.ones_like(norm.weight)
            found[f"{path}.bias"] = torch.zeros_like(norm.bias)
    return found
