"""The evaluator of successive halving: trainings that are paused at a rung and go on when promoted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from nas.data.task import Task
from nas.errors import ConfigError, TrialError
from nas.evaluate.trained import affordable
from nas.files.atomic import read_json, write_json
from nas.files.folder import alone_in
from nas.files.schemas import RungsRecord, checked
from nas.searchers.fidelity import Ladder, scaled_space, scaled_task
from nas.seeding import derive, isolated
from nas.space.cost import Cost, cost
from nas.space.space import Space
from nas.training.checkpoint import Checkpoints
from nas.training.memory_estimate import noting, training_bytes
from nas.training.recipe import Recipe, segmented
from nas.training.retry import RETRY, Retry, last_retry, with_retries
from nas.training.train import Curve, train
from nas.types import Genotype, Trial
from nas.user_code import build_errors, user_errors

RESULTS = "results.json"
"""What one architecture reached at each rung, in its folder."""


@dataclass(frozen=True, eq=False)
class Stage:
    """Consecutive rungs that differ in epochs only: one training, paused at the end of each.

    first: position of its lowest rung in the ladder.
    recipe: one segment for each rung.
    """

    first: int
    space: Space
    task: Task
    recipe: Recipe

    def until(self, rung: int) -> int:
        """Epochs of this training by the end of a rung; all of them for a rung beyond it."""
        return self.recipe.ends[min(rung - self.first, len(self.recipe.ends) - 1)]

    def shapes(self, genotype: Genotype) -> list[tuple[str, torch.Size]]:
        """What the weights of another network must look like to fit this stage's."""
        network = self.space.network(genotype, meta=True)
        return [(name, value.shape) for name, value in network.state_dict().items()]


@dataclass(frozen=True, eq=False)
class Laddered:
    """Trains each architecture up the rungs of a ladder; a promoted one goes on from where it was paused.

    Every rung brings the learning rate down to its minimum, and the next begins again at its top (see
    `Recipe.restarts`). Weights and momentum pass to the next rung also where it has more or larger images.
    Where it is wider or deeper they do not fit: it begins with new weights, and the rungs below only chose
    it. What an architecture learns depends on (seed, genotype) alone, so a promoted or interrupted training
    equals an uninterrupted one bit for bit on the CPU.

    recipe: everything but the epochs; each rung runs its schedule, the first one its warm-up.
    ladder: what the trials' fidelities mean.
    folder: where the checkpoints of paused trials live, and the results by rung of each architecture.
    stop: see `nas.training.train.train`.
    """

    space: Space
    task: Task
    recipe: Recipe
    ladder: Ladder
    folder: Path
    seed: int = 0
    stop: Callable[[], bool] | None = None

    def __call__(self, trial: Trial, rng: np.random.Generator) -> Mapping[str, float]:  # noqa: ARG002 - an Evaluator
        """`val_acc`, `val_loss`, `train_loss`, `params`, `macs`, `epochs_trained` and `continued`.

        And `lr_factor` or `passes_per_step`, where it took them to train at all (see `nas.training.retry`).

        params, macs: of the architecture at full size.
        epochs_trained: what this trial trained; more than its rung's where no trial had trained those below.
        continued: 1 where it went on with the weights of an earlier trial, else 0.
        """
        rung = self.ladder.rung(trial.fidelity)
        with alone_in(self.place(trial.genotype)):
            try:
                with user_errors():
                    metrics = self._measured(trial, rung)
            except TrialError:
                self.forget(trial.genotype)
                raise
            if rung == len(self.ladder) - 1:
                self._remove_checkpoints(trial.genotype)
            return metrics

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The trainings that the ladder is made of."""
        found: list[Stage] = []
        first = 0
        for _, group in groupby(self.ladder.rungs, key=lambda rung: rung.shares):
            rungs = list(group)
            space, task = scaled_space(self.space, rungs[0]), scaled_task(self.task, rungs[0])
            found.append(Stage(first, space, task, segmented(self.recipe, [rung.epochs for rung in rungs])))
            first += len(rungs)
        return tuple(found)

    def needed_bytes(self, trial: Trial) -> int:
        """Memory that the training up to a rung needs at least, see `nas.training.memory_estimate`."""
        rung = self.ladder.rung(trial.fidelity)
        return max(
            training_bytes(
                cost(stage.space, trial.genotype, stage.task.image_shape),
                min(stage.recipe.batch, len(stage.task.train)),
            )
            for stage in self.stages
            if stage.first <= rung
        )

    def forget(self, genotype: Genotype) -> None:
        """Removes all that is kept of an architecture that will not be asked for again."""
        shutil.rmtree(self.place(genotype), ignore_errors=True)

    def place(self, genotype: Genotype) -> Path:
        """The folder of one architecture."""
        return self.folder / f"ladder-{self.seed_of(genotype):016x}"

    def seed_of(self, genotype: Genotype) -> int:
        """The root of everything random about one architecture's trainings."""
        return derive(self.seed, "ladder", *genotype)

    def _measured(self, trial: Trial, rung: int) -> Mapping[str, float]:
        """The metrics at a rung: those on record, else of a training that is put there."""
        counted = affordable(self.space, trial.genotype, self.task)
        results, key = self._results(trial.genotype, counted), str(trial.fidelity)
        if key not in results:
            with noting(counted, self.needed_bytes(trial), self.task.train.x.device):
                found = self._climb(trial.genotype, rung, results)
            results[key] = {**found, "params": counted.params, "macs": counted.macs}
            record = {"settings": self._settings(counted), "results": results}
            self.place(trial.genotype).mkdir(parents=True, exist_ok=True)
            write_json(self.place(trial.genotype) / RESULTS, record)
        return results[key]

    def _climb(self, genotype: Genotype, rung: int, before: Iterable[str]) -> dict[str, float]:
        """Trains up to a rung; `before` are the fidelities that earlier trials reached."""
        chain, place = self._chain(genotype, rung), self.place(genotype)
        rate = last_retry(place).lr_factor
        batch = min(self.recipe.batch, len(self.task.train))
        curve, retry = with_retries(partial(self._train, genotype, chain, rung), folder=place, batch=batch)
        below = max((self.ladder.rung(int(fidelity)) for fidelity in before), default=-1)
        # At another learning rate it is another training, from the first rung on.
        begin = max(chain[0].first, below + 1) if retry.lr_factor == rate else chain[0].first
        return {
            "val_acc": curve.val_acc[-1],
            "val_loss": curve.val_loss[-1],
            "train_loss": curve.train_loss[-1],
            "epochs_trained": sum(r.epochs for r in self.ladder.rungs[begin : rung + 1]),
            "continued": int(begin > chain[0].first),
            **retry.metrics,
        }

    def _chain(self, genotype: Genotype, rung: int) -> list[Stage]:
        """The trainings whose weights a rung builds on, its own the last."""
        chain: list[Stage] = []
        for stage in self.stages:
            if stage.first <= rung:
                fits = chain and chain[-1].shapes(genotype) == stage.shapes(genotype)
                chain = [*chain, stage] if fits else [stage]
        return chain

    def _train(self, genotype: Genotype, chain: Sequence[Stage], rung: int, retry: Retry) -> Curve:
        place = retry.place(self.place(genotype))
        seed, curve, start = self.seed_of(genotype), Curve(), None
        for stage in chain:
            with isolated(seed, "init"), build_errors():
                network = stage.space.network(genotype).to(stage.task.train.x.device)
            # Many trials are paused at a time, and a damaged checkpoint costs a repetition only.
            checkpoints = Checkpoints(place / f"rung-{stage.first}", keep=1)
            recipe = retry.of(stage.recipe)
            curve = train(
                network,
                stage.task,
                recipe if start is None else replace(recipe, warmup_epochs=0.0),
                seed=derive(seed, stage.first),
                evaluate_on=stage.task.val,
                evaluate_every=None,
                until=stage.until(rung),
                start=start,
                checkpoints=checkpoints,
                passes=retry.passes,
                stop=self.stop,
            )
            start = checkpoints
        return curve

    def _results(self, genotype: Genotype, counted: Cost) -> dict[str, dict[str, float]]:
        """What was measured before, by fidelity. A trial killed before it was told finds its own there."""
        path = self.place(genotype) / RESULTS
        if not path.exists():
            return {}
        record = checked(RungsRecord, read_json(path), path, "record of a paused training")
        if record.settings != self._settings(counted):
            raise ConfigError(
                f"{path} was written with another recipe, ladder, space or task; resume with the same "
                f"settings, or remove {self.folder} to start anew"
            )
        return record.results

    def _settings(self, counted: Cost) -> list[str | int]:
        network = [counted.params, counted.macs]
        return [repr(self.recipe), str(self.ladder), self.task.fingerprint, *network]

    def _remove_checkpoints(self, genotype: Genotype) -> None:
        place = self.place(genotype)
        for folder in (*place.glob("rung-*"), *place.glob("lr-*")):
            shutil.rmtree(folder, ignore_errors=True)
        (place / RETRY).unlink(missing_ok=True)
