"""The evaluator that trains an architecture for a few epochs, and validates it."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from nas.data.task import Task
from nas.errors import ConfigError, TrialError
from nas.files.atomic import temporary_folder
from nas.files.folder import alone_in
from nas.seeding import isolated
from nas.space.cost import Cost, cost
from nas.space.network_morphism import graft, is_addition, mismatch
from nas.space.space import Space
from nas.training.checkpoint import Checkpoints
from nas.training.memory_estimate import NEEDED, failed_for_memory, noting, require_memory, training_bytes
from nas.training.recipe import Recipe, compressed
from nas.training.retry import Retry, with_retries
from nas.training.train import Control, Curve, Evaluation, train
from nas.types import Genotype, Trial
from nas.user_code import build_errors, user_errors

_log = logging.getLogger("nas")

KEPT = 50
INHERITED = "inherited_from"
"""The metric that says with which trial's weights a trial began; -1 for none."""
Start = Callable[[Trial, nn.Module], nn.Module]
"""The network that a trial's training begins with, from a freshly initialised one."""
ShouldStop = Callable[[Sequence[float], int], bool]
"""Whether to train no further, given the validation accuracies so far and the epochs granted."""


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
    weights: where the weights of ended trials are kept. Each trial then begins with those of the best earlier
      one that it is one addition to (`nas.space.network_morphism`); where there is none, or its weights are
      lost, as `start` has it. It has then been trained for longer than its fidelity says, the epochs of its
      ancestors included, so its accuracy flatters it: compare the best afresh in the end.
      The weights of the best `KEPT` trials of each fidelity stay.

    Example:
        study.run(nas.Trained(space, task, nas.Recipe(epochs=3)), trials=20)
    """

    space: Space
    task: Task
    recipe: Recipe
    folder: Path | None = None
    judge: Callable[[Trial, nn.Module], None] | None = None
    stop: Callable[[], bool] | None = None
    start: Start | None = None
    weights: Path | None = None

    def __call__(
        self,
        trial: Trial,
        rng: np.random.Generator,
        *,
        parent: Trial | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Mapping[str, float]:
        """The metric of the problem, `val_loss`, `train_loss`, `params`, `macs` and `epochs_trained`.

        And `lr_factor` or `passes_per_step`, where it took them to train at all; `inherited_from`, the number
        of a trial or -1, where weights are kept.

        parent: the trial whose weights it begins with; see `hints`.
        should_stop: ends a training that will not be among the best.
        """
        seed = int(rng.integers(2**62))
        with self._place(trial, is_needed=should_stop is not None) as folder, user_errors():
            counted = affordable(self.space, trial.genotype, self.task)
            start, inherited = self.start, -1.0
            if parent is not None and (grafting := self._grafting(parent)) is not None:
                start, inherited = grafting, float(parent.number)
            with noting(counted, self.needed_bytes(trial), self.task.train.x.device):
                (network, curve), retry = with_retries(
                    partial(self._attempt, trial, seed, folder, start=start, should_stop=should_stop),
                    folder=folder,
                    batch=self._batch,
                    note=partial(_log.warning, "trial %d: %s", trial.number),
                )
            if self.judge is not None:
                self.judge(trial, network)
            if self.weights is not None:
                state = {"weights": network.state_dict()}
                Checkpoints(self._weights_folder(trial), keep=1).save(trial.fidelity, state)
        kept = {} if self.weights is None else {INHERITED: inherited}
        return {**summary(curve, counted, retry), "epochs_trained": len(curve.train_loss), **kept}

    def hints(self, trial: Trial, known: Sequence[Trial]) -> Mapping[str, Trial | None]:
        """What a trial is told of those known when it was proposed: its `parent`, where weights are kept.

        The parent is the best trial by validation metric, of equal ones the earliest. Weights of trials that
        are no longer among the best are removed, but for those that a trial under way may need again.
        """
        if self.weights is None:
            return {}
        own = [t for t in known if t.fidelity == trial.fidelity and INHERITED in t.metrics]
        score = self.task.problem.objective.score
        ordered = sorted(own, key=lambda t: (-score(t.metrics), t.number))
        # Of those beside this one, each may have a parent that what ended since has pushed out.
        for beaten in ordered[KEPT + len(trial.beside) :]:
            shutil.rmtree(self._weights_folder(beaten), ignore_errors=True)
        best = (t for t in ordered[:KEPT] if is_addition(self.space, t.genotype, trial.genotype))
        return {"parent": next(best, None)}

    def needed_bytes(self, trial: Trial) -> int:
        """What the training is estimated to need of memory at least, see `nas.training.memory_estimate`."""
        counted = cost(self.space, trial.genotype, self.task.image_shape)
        return training_bytes(counted, self._batch)

    @property
    def _batch(self) -> int:
        return min(self.recipe.batch, len(self.task.train))

    def _attempt(
        self,
        trial: Trial,
        seed: int,
        folder: Path | None,
        retry: Retry,
        *,
        start: Start | None,
        should_stop: ShouldStop | None,
    ) -> tuple[nn.Module, Curve]:
        with isolated(seed, "init"):
            with build_errors():
                network = self.space.network(trial.genotype)
            network = (network if start is None else start(trial, network)).to(self.task.train.x.device)
        place, epochs = None if folder is None else retry.place(folder), trial.fidelity
        train_to = partial(
            train,
            network,
            self.task,
            retry.of(compressed(self.recipe, epochs)),
            seed=seed,
            passes=retry.passes,
        )
        control = Control(checkpoints=None if place is None else Checkpoints(place), stop=self.stop)
        if should_stop is None or place is None:
            return network, train_to(evaluation=Evaluation(self.task.val, epochs), control=control)
        for epoch in range(self._epoch_at(place), epochs + 1):  # each goes on from the checkpoint
            curve = train_to(evaluation=Evaluation(self.task.val), control=replace(control, until=epoch))
            if epoch < epochs and should_stop(curve.val_score, epochs):
                break
        return network, curve

    def _epoch_at(self, folder: Path) -> int:
        """The epoch that a checkpoint was written in or at the end of; 1 without one."""
        saved = Checkpoints(folder).load()
        steps_per_epoch = len(self.task.train) // self._batch
        return 1 if saved is None else max(1, math.ceil(saved[0] / steps_per_epoch))

    def _place(self, trial: Trial, *, is_needed: bool) -> AbstractContextManager[Path | None]:
        """The folder of the trial's checkpoint."""
        if self.folder is not None:
            return working_in(self.folder / f"trial-{trial.number}")
        if is_needed:
            return temporary_folder()
        return nullcontext()

    def _weights_folder(self, trial: Trial) -> Path:
        assert self.weights is not None
        return self.weights / f"weights-{trial.number}"

    def _grafting(self, parent: Trial) -> Start | None:
        """Begins with a trial's weights; None, with a note in the log, when they are lost or do not fit."""
        folder = self._weights_folder(parent)
        try:
            saved = Checkpoints(folder).load()
        except ConfigError as error:
            _log.warning("%s", error)
            saved = None
        weights: Mapping[str, Tensor] = {} if saved is None else saved[1].get("weights", {})
        if mismatch(self.space.network(parent.genotype, meta=True).state_dict(), weights):
            _log.warning("%s holds no weights of trial %d to grow from", folder, parent.number)
            return None

        def start(trial: Trial, network: nn.Module) -> nn.Module:
            graft(self.space, trial.genotype, network, parent=parent.genotype, weights=weights)
            return network

        return start


@contextmanager
def working_in(folder: Path, *, stays: bool = False) -> Iterator[Path]:
    """The folder of one training; what is interrupted leaves it behind, as does success where it `stays`."""
    with alone_in(folder):
        try:
            yield folder
        except TrialError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if not stays:
            shutil.rmtree(folder, ignore_errors=True)


def summary(curve: Curve, counted: Cost, retry: Retry) -> dict[str, float]:
    """What every training tells: how good its network is in the end, how large, and what was retried."""
    return {
        curve.metric: curve.val_score[-1],
        "val_loss": curve.val_loss[-1],
        "train_loss": curve.train_loss[-1],
        "params": counted.params,
        "macs": counted.macs,
        **retry.metrics,
    }


def affordable(space: Space, genotype: Genotype, task: Task) -> Cost:
    """The architecture's cost, counted on the meta device before any memory is taken.

    Raises:
        TrialError: with reason `build` when it cannot be built, `oom` when its weights and the momentum and
          gradients that training adds cannot fit in the device's memory.
    """
    counted = cost(space, genotype, task.image_shape)
    require_memory(counted.params, task.train.x.device)
    return counted


def too_large(
    trial: Trial, before: Sequence[Trial], needed_bytes: Callable[[Trial], int], memory: int
) -> TrialError | None:
    """Why a trial need not be trained: it needs at least as much memory as an earlier one that ran out.

    before: the trials that had ended when it was proposed, or of another study on this device.
    needed_bytes: the estimate for a trial, e.g. `Trained.needed_bytes`.
    memory: of the device.
    """
    failed = failed_for_memory(before, memory)
    if failed is None:
        return None
    try:
        with user_errors():
            needed = needed_bytes(trial)
    except TrialError:  # its trial will fail for this reason, and say so
        return None
    if needed < failed.metrics[NEEDED]:
        return None
    return TrialError(
        "oom",
        f"learned: it needs at least {needed / 2**20:,.0f} MiB to train, no less than trial {failed.number}, "
        f"which ran out of memory at {failed.metrics[NEEDED] / 2**20:,.0f} MiB",
    )
