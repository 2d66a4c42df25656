"""What a task tells a space, and which settings of a recipe suit both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch

from nas.data.augment import parts_of
from nas.data.task import Task
from nas.errors import ConfigError, SpaceError, TrialError
from nas.run.config import Config
from nas.run.resolved_config import Plan
from nas.seeding import rng
from nas.space.cell import Cell
from nas.space.space import Space
from nas.training.recipe import Recipe
from nas.user_code import user_errors

MAP = 32
"""Pixels: images of CIFAR enter cells as they are, larger ones are reduced before."""


def offer(task: Task) -> dict[str, object]:
    """What a task tells a space about its images; their size is that of the shorter side.

    stem_stride: so that maps of at most `MAP` pixels a side reach the cells.
    """
    channels, *sides = task.image_shape
    stride = 1 << max(0, math.ceil(math.log2(min(sides) / MAP)))
    sizes = {"image_size": min(sides), "stem_stride": stride}
    return {"classes": task.num_classes, "in_channels": channels, **sizes}


def augmented(config: Config, plan: Plan, task: Task) -> tuple[Plan, Task, str]:
    """The plan and the task whose images are varied as `augment` says, and what is on, in words.

    What the table of a phase says, such as `retrain.cutout`, stays. The square of a cutout is half as wide as
    the images.
    """
    if config.augment is None:
        asked = [
            name for name in ("trial", "shared", "search", "retrain") if getattr(config, name).get("flip")
        ]
        if asked and not task.flip:
            raise ConfigError(
                f"{asked[0]}.flip is set, but mirrored images of {task.name!r} may mean something else; if "
                "they do not, use --augment crop+flip"
            )
        return plan, task, "crop+flip" if task.flip else "crop"
    parts = parts_of(config.augment)
    wanted = {
        "crop": "crop" in parts,
        "flip": "flip" in parts,
        "cutout": min(task.image_shape[1:]) // 2 if "cutout" in parts else 0,
    }

    def varied(recipe: Recipe, table: Mapping[str, object]) -> Recipe:
        return dataclasses.replace(recipe, **{k: v for k, v in wanted.items() if k not in table})  # type: ignore[arg-type]

    changed = dataclasses.replace(
        plan,
        trial=varied(plan.trial, config.trial),
        search=dataclasses.replace(plan.search, weights=varied(plan.search.weights, config.search)),
        shared=varied(plan.shared, config.shared),
        final=varied(plan.final, config.retrain),
    )
    return changed, dataclasses.replace(task, flip="flip" in parts), config.augment


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
