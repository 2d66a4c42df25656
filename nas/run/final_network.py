"""The network that a job trains in the end: size, recipe, and what the constraints on its costs allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch

from nas.data.task import Task
from nas.errors import ConfigError, SpaceError, TrialError, counted
from nas.evaluate.cost_metrics import COUNTED, free_metrics
from nas.run.config import Config
from nas.run.job import Job, Plan
from nas.searchers.searcher import Bounded, Searcher
from nas.seeding import rng
from nas.space.cell import Cell
from nas.space.latency import LATENCY
from nas.space.loading import load
from nas.space.space import Space
from nas.training.recipe import Recipe, compressed
from nas.types import Genotype
from nas.user_code import user_errors


def final_space(config: Config, plan: Plan, space: Space, task: Task) -> Space:
    """The space at the size of the last network.

    From weak to strong: the searched size, the space's full size (where the preset asks for it), the preset's
    final size (the engine's own spaces only), the user's `space_settings`, the user's `final_settings`.
    """
    if not space.origin:
        if config.final_settings:
            raise ConfigError("final_settings are given, but a space made by hand has one size only")
        return space
    sizes = {**space.settings, **(space.full_size if plan.full_size else {}), **plan.final_size}
    final = load(space.origin, sizes | offer(task), **{**config.space_settings, **config.final_settings})
    if final.decisions != space.decisions:
        raise ConfigError(
            f"space {space.name!r} has other decisions at its final size; settings of the last network may "
            "change its size only"
        )
    return final


def final_recipe(config: Config, plan: Plan, space: Space, task: Task) -> tuple[Recipe, list[str]]:
    """The recipe of the last training, and notes on what of the preset's it leaves out.

    That is epochs beyond the preset's bound on images, and what does not suit the space and the images.

    Raises:
        ConfigError: when the user's own settings ask for what does not suit them.
    """
    recipe, notes = plan.final, []
    images = len(task.train) + len(task.val)
    if plan.final_images is not None and recipe.epochs * images > plan.final_images:
        epochs = max(1, round(plan.final_images / images))
        notes.append(
            f"last training: {counted(epochs, 'epoch')}, not {recipe.epochs}, for {counted(images, 'image')} "
            f"(preset {config.preset}; --set retrain.epochs={recipe.epochs} trains longer)"
        )
        recipe = compressed(recipe, epochs)
    for name, reason in unsuited(recipe, space, task).items():
        if name in config.retrain:
            raise ConfigError(f"retrain.{name} is set, but {reason}; remove it")
        recipe = replace(recipe, **{name: 0})  # type: ignore[arg-type]
        notes.append(f"{reason}: {name} off")
    return recipe, notes


MAP = 32
"""Pixels: images of CIFAR enter cells as they are, larger ones are reduced before."""


def offer(task: Task) -> dict[str, object]:
    """What a task tells a space about its images; their size is that of the shorter side.

    stem_stride: so that maps of at most `MAP` pixels a side reach the cells.
    """
    channels, *sides = task.image_shape
    stride = 1 << max(0, math.ceil(math.log2(min(sides) / MAP)))
    sizes = {"image_size": min(sides), "stem_stride": stride}
    return {"classes": task.outputs, "in_channels": channels, **sizes}


def check_trial(plan: Plan, space: Space, task: Task) -> None:
    """Raises ConfigError when the trials' recipe asks for what does not suit the space or the images."""
    for name, reason in unsuited(plan.trial, space, task).items():
        raise ConfigError(f"trial.{name} is set, but {reason}; remove it")


def unsuited(recipe: Recipe, space: Space, task: Task) -> dict[str, str]:
    """Settings of a recipe that make no sense for this space and these images, each with the reason."""
    found = {}
    if recipe.drop_path and not any(isinstance(module, Cell) for module in space.outline.modules()):
        found["drop_path"] = f"space {space.name!r} has no cells here"
    if recipe.auxiliary and not _has_auxiliary(space, task):
        found["auxiliary"] = f"space {space.name!r} has no auxiliary head here"
    side = min(task.image_shape[1:])
    if recipe.cutout >= side:
        found["cutout"] = f"a square of {recipe.cutout} pixels blanks images of {side}"
    return found


def _has_auxiliary(space: Space, task: Task) -> bool:
    """What one random architecture gives in training; one that fails says nothing against it."""
    try:
        with user_errors():
            network = space.network(space.sample(rng(0, "auxiliary")), meta=True).train()
            output = network(torch.zeros(2, *task.image_shape, device="meta"))
    except (SpaceError, TrialError):
        return True
    return isinstance(output, tuple) and output[1] is not None


DRAWN = 200
"""Changes of a default that breaks a constraint."""


def excess_of(job: Job) -> Callable[[Genotype], float]:
    """By how much the last network of an architecture breaks the constraints that need no training.

    One that cannot be built breaks none: its trial will fail for this reason, and say so.
    """
    table = job.latency_table
    free = {*COUNTED, *([LATENCY] if table is not None else [])}
    bounds = [bound for bound in job.plan.goals.constraints if bound.metric in free]

    def excess(genotype: Genotype) -> float:
        try:
            with user_errors():
                costs = free_metrics(job.final, genotype, job.task.image_shape, table) if bounds else {}
        except TrialError:
            return 0.0
        return sum(bound.excess(costs) for bound in bounds)

    return excess


def bounded(job: Job, searcher: Searcher) -> Searcher:
    """The searcher kept to architectures whose last networks keep the constraints on costs."""
    if not job.plan.goals.constraints:
        return searcher
    excess = excess_of(job)
    return Bounded(searcher, lambda genotype, _: excess(genotype) == 0)


def default_of(job: Job) -> Genotype | None:
    """The space's default; where it breaks a constraint on costs, one that keeps them, by few changes of it.

    Single changes are drawn, and kept where they bring an architecture nearer to the constraints. None where
    no such one was found.
    """
    key = (f"default under {job.plan.goals} at {dict(job.final.settings)}", ())
    if key not in job.space.memo:
        job.space.memo[key] = _nearest_default(job.space, excess_of(job))
    return cast(Genotype | None, job.space.memo[key])


def _nearest_default(space: Space, excess: Callable[[Genotype], float]) -> Genotype | None:
    found, draw = space.default_genotype, rng(0, "default")
    least = excess(found)
    for _ in range(DRAWN):
        if least == 0:
            return found
        changed = space.mutate(found, draw)
        if (now := excess(changed)) < least:
            found, least = changed, now
    return None
