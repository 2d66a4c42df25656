"""The evaluator that trains an architecture for a few epochs, and validates it."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from nas.data.task import Task
from nas.errors import TrialError
from nas.files.atomic import temporary_folder
from nas.files.lock import alone_in
from nas.seeding import isolated
from nas.space.cost import Cost, cost
from nas.space.space import Space
from nas.training.checkpoint import Checkpoints
from nas.training.memory_estimate import noting, require_memory, training_bytes
from nas.training.recipe import Recipe, compressed
from nas.training.retry import Ease, eased
from nas.training.train import Curve, train
from nas.types import Genotype, Trial
from nas.user_code import build_errors, user_errors

_log = logging.getLogger("nas")

Start = Callable[[Trial, nn.Module], nn.Module]
"""The network that a trial's training begins with, from a freshly initialised one."""
Hopeless = Callable[[Sequence[float], int], bool]
"""Told the validation accuracies so far and the epochs granted, says whether to train no further."""


@dataclass(frozen=True, eq=False)
class Trained:
    """Trains each architecture for its fidelity's epochs and validates it.

    A training that diverges or runs out of memory has a second chance, see `nas.training.retry`.

    recipe: everything but the epochs; its schedule is compressed to them.
    folder: where a trial's own checkpoint lives while it trains, so that a killed one goes on.
    judge: told of every trained network.
    stop: see `nas.training.train.train`.
    start: gives the network that training begins with, from a freshly initialised one, and may draw from
      torch's global stream; asked again when a trial is resumed. From scratch by default.
    """

    space: Space
    task: Task
    recipe: Recipe
    folder: Path | None = None
    judge: Callable[[Trial, nn.Module], None] | None = None
    stop: Callable[[], bool] | None = None
    start: Start | None = None

    def __call__(
        self, trial: Trial, rng: np.random.Generator, *, hopeless: Hopeless | None = None
    ) -> Mapping[str, float]:
        """`val_acc`, `val_loss`, `train_loss`, `params`, `macs` and `epochs_trained`.

        And `lr_factor` or `passes_per_step`, where it took them to train at all.

        hopeless: ends a training that will not be among the best.
        """
        seed = int(rng.integers(2**62))
        with self._place(trial, keeps=hopeless is not None) as folder, user_errors():
            counted = affordable(self.space, trial.genotype, self.task)
            with noting(counted, self.needed_bytes(trial), self.task.train.x.device):
                (network, curve), ease = eased(
                    partial(self._attempt, trial, seed, folder, hopeless),
                    folder=folder,
                    batch=self._batch,
                    note=partial(_log.warning, "trial %d: %s", trial.number),
                )
            if self.judge is not None:
                self.judge(trial, network)
        return {
            "val_acc": curve.val_acc[-1],
            "val_loss": curve.val_loss[-1],
            "train_loss": curve.train_loss[-1],
            "params": counted.params,
            "macs": counted.macs,
            "epochs_trained": len(curve.train_loss),
            **ease.metrics,
        }

    def needed_bytes(self, trial: Trial) -> int:
        """What the training is estimated to need of memory at least, see `nas.training.memory_estimate`."""
        counted = cost(self.space, trial.genotype, self.task.image_shape)
        return training_bytes(counted, self._batch)

    @property
    def _batch(self) -> int:
        return min(self.recipe.batch, len(self.task.train))

    def _attempt(
        self, trial: Trial, seed: int, folder: Path | None, hopeless: Hopeless | None, ease: Ease
    ) -> tuple[nn.Module, Curve]:
        with isolated(seed, "init"):
            network = self._begin(trial).to(self.task.train.x.device)
        place = None if folder is None else ease.place(folder)
        recipe = ease.of(compressed(self.recipe, trial.fidelity))
        train_to = partial(self._train_to, network, recipe, seed, ease=ease, folder=place)
        return network, self._train(train_to, trial.fidelity, place, hopeless)

    def _begin(self, trial: Trial) -> nn.Module:
        with build_errors():
            network = self.space.network(trial.genotype)
        return network if self.start is None else self.start(trial, network)

    def _train(
        self,
        train_to: Callable[..., Curve],
        epochs: int,
        folder: Path | None,
        hopeless: Hopeless | None,
    ) -> Curve:
        """Trains to the end, or with `hopeless` one epoch at a time, each going on from the checkpoint."""
        if hopeless is None or folder is None:
            return train_to(epochs, evaluate_every=epochs)
        for epoch in range(self._begun(folder), epochs + 1):
            curve = train_to(epoch, evaluate_every=1)
            if epoch < epochs and hopeless(curve.val_acc, epochs):
                break
        return curve

    def _train_to(
        self,
        network: nn.Module,
        recipe: Recipe,
        seed: int,
        epoch: int,
        *,
        ease: Ease,
        folder: Path | None,
        evaluate_every: int,
    ) -> Curve:
        return train(
            network,
            self.task,
            recipe,
            seed=seed,
            evaluate_on=self.task.val,
            evaluate_every=evaluate_every,
            until=epoch,
            checkpoints=Checkpoints(folder) if folder is not None else None,
            gradients=ease.gradients,
            stop=self.stop,
        )

    def _begun(self, folder: Path) -> int:
        """The epoch that a checkpoint was written in or at the end of; 1 without one."""
        saved = Checkpoints(folder).load()
        steps_per_epoch = len(self.task.train) // self._batch
        return 1 if saved is None else max(1, math.ceil(saved[0] / steps_per_epoch))

    @contextmanager
    def _place(self, trial: Trial, *, keeps: bool) -> Iterator[Path | None]:
        """The folder of the trial's checkpoint; it stays behind only when training is interrupted.

        keeps: whether one is needed, even if it is a temporary one.
        """
        if self.folder is None:
            if not keeps:
                yield None
                return
            with temporary_folder() as temporary:
                yield temporary
            return
        folder = self.folder / f"trial-{trial.number}"
        with alone_in(folder):
            try:
                yield folder
            except TrialError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)


def affordable(space: Space, genotype: Genotype, task: Task) -> Cost:
    """The architecture's cost, counted on the meta device before any memory is taken.

    Raises:
        TrialError: with reason `build` when it cannot be built, `oom` when its weights and the momentum and
          gradients that training adds cannot fit in the device's memory.
    """
    counted = cost(space, genotype, task.image_shape)
    require_memory(counted.params, task.train.x.device)
    return counted
