"""The evaluator of successive halving: trainings that are paused at a rung and go on when promoted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path

import numpy as np

from nas.data.task import Task
from nas.errors import SpaceError
from nas.evaluate.trained import affordable, summary, working_in
from nas.searchers.fidelity import Fidelity, Ladder
from nas.seeding import derive, isolated
from nas.space.cost import cost
from nas.space.loading import load
from nas.space.network_morphism import mismatch
from nas.space.space import Space
from nas.training.checkpoint import Checkpoints
from nas.training.memory_estimate import noting, training_bytes
from nas.training.recipe import Recipe, segmented
from nas.training.retry import Retry, with_retries
from nas.training.train import Control, Curve, Evaluation, train
from nas.types import Genotype, Trial
from nas.user_code import build_errors, user_errors


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
    folder: where the checkpoints of paused trainings live.
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
        """The metric of the problem, `val_loss`, `train_loss`, `params`, `macs` and `epochs_trained`.

        And `lr_factor` or `passes_per_step`, where it took them to train at all (see `nas.training.retry`).

        params, macs: of the architecture at full size.
        epochs_trained: that its weights have learned for, on the rungs below too.
        """
        rung, place = self.ladder.rung(trial.fidelity), self.place(trial.genotype)
        with working_in(place, stays=rung < len(self.ladder) - 1), user_errors():
            counted = affordable(self.space, trial.genotype, self.task)
            chain = self._chain(trial.genotype, rung)
            with noting(counted, self.needed_bytes(trial), self.task.train.x.device):
                curve, retry = with_retries(
                    partial(self._train, trial.genotype, chain, rung),
                    folder=place,
                    batch=min(self.recipe.batch, len(self.task.train)),
                )
        learned = sum(r.epochs for r in self.ladder.rungs[chain[0].first : rung + 1])
        return {**summary(curve, counted, retry), "epochs_trained": learned}

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
        # No share shrinks from rung to rung.
        stage = [s for s in self.stages if s.first <= self.ladder.rung(trial.fidelity)][-1]
        counted = cost(stage.space, trial.genotype, stage.task.image_shape)
        return training_bytes(counted, min(stage.recipe.batch, len(stage.task.train)))

    def place(self, genotype: Genotype) -> Path:
        """The folder of one architecture."""
        return self.folder / f"ladder-{self._seed_of(genotype):016x}"

    def _seed_of(self, genotype: Genotype) -> int:
        """The root of everything random about one architecture's trainings."""
        return derive(self.seed, "ladder", *genotype)

    def _chain(self, genotype: Genotype, rung: int) -> list[Stage]:
        """The trainings whose weights a rung builds on, its own the last."""
        chain: list[Stage] = []
        for stage in self.stages:
            if stage.first <= rung:
                weights = stage.space.network(genotype, meta=True).state_dict()
                before = chain[-1].space.network(genotype, meta=True).state_dict() if chain else {}
                chain = [stage] if mismatch(weights, before) else [*chain, stage]
        return chain

    def _train(self, genotype: Genotype, chain: Sequence[Stage], rung: int, retry: Retry) -> Curve:
        place = retry.place(self.place(genotype))
        seed, curve, start = self._seed_of(genotype), Curve(), None
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
                evaluation=Evaluation(stage.task.val, None),
                start=start,
                passes=retry.passes,
                control=Control(
                    checkpoints=checkpoints,
                    stop=self.stop,
                    until=recipe.ends[min(rung - stage.first, len(recipe.ends) - 1)],
                ),
            )
            start = checkpoints
        return curve


# -- what a rung means ---------------------------------------------------------------------------------


def scaled_space(space: Space, fidelity: Fidelity) -> Space:
    """The space at the size of a rung: the settings that it scales multiplied and rounded, at least 1.

    A setting `image_size` follows the images where the space has one.

    Raises:
        SpaceError: when the space cannot be made at another size, or would have other decisions.
    """
    cut = {name: share for name, share in fidelity.shares.items() if name != "images" and share != 1}
    if "image_size" not in space.settings:
        cut.pop("image_size", None)
    if not cut:
        return space
    settings = {name: _scaled(space, name, share) for name, share in cut.items()}
    scaled = load(space.origin, {**space.settings, **settings})
    if scaled.decisions != space.decisions:
        sizes = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise SpaceError(
            f"space {space.name!r} has other decisions at {sizes}; a rung may change its size only"
        )
    return scaled


def _scaled(space: Space, name: str, share: float) -> int:
    if not space.origin:
        raise SpaceError(
            f"space {space.name!r} was made by hand, so a rung cannot change its {name}; "
            "load it by name or as FILE.py:FUNCTION"
        )
    value = space.settings.get(name)
    if type(value) is not int:
        raise SpaceError(
            f"space {space.name!r} has no whole number {name!r} among its settings for a rung to change; "
            f"it has {', '.join(space.settings)}"
        )
    return max(1, round(value * share))


def scaled_task(task: Task, fidelity: Fidelity) -> Task:
    """The task with a rung's share of the training images, at its size."""
    side = max(1, round(task.image_shape[1] * fidelity.image_size))
    return task.subset(fidelity.images).resized(side)
