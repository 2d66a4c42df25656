"""The size and the recipe of the last network, from weak settings to strong ones."""

from __future__ import annotations

from nas.data.task import Task
from nas.errors import ConfigError
from nas.run.compatibility import offer, unsuited
from nas.run.config import Config
from nas.run.overrides import change
from nas.run.resolved_config import Plan
from nas.space.loading import load
from nas.space.space import Space
from nas.text import counted
from nas.training.recipe import Recipe, compressed


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
        recipe = change(recipe, {name: 0}, "retrain")
        notes.append(f"{reason}: {name} off")
    return recipe, notes
