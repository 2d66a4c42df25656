"""What a task tells a space, and which settings of a recipe suit both."""

from __future__ import annotations

import torch

from nas.cell import Cell
from nas.errors import ConfigError, SpaceError, TrialError
from nas.job.plan import Plan
from nas.seeding import rng
from nas.space import Space
from nas.task import Task
from nas.training.recipe import Recipe
from nas.user_code import user_errors


def offer(task: Task) -> dict[str, object]:
    """What a task tells a space about its images; their size is that of the shorter side."""
    channels, *sides = task.image_shape
    return {"classes": task.num_classes, "in_channels": channels, "image_size": min(sides)}


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
