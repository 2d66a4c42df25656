"""The last training: one architecture at its final size, on all images but the test split, and its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas import devices
from nas.cell import Cell
from nas.checkpoint import Checkpoints
from nas.config import Config, make_config, with_names
from nas.easing import Ease, eased
from nas.errors import ConfigError, SpaceError, TrialError
from nas.evaluate import affordable
from nas.files import FolderLock
from nas.graph import cell_graphs
from nas.guard import user_errors
from nas.inputs import Inputs
from nas.latency import latency
from nas.oneshot.fused.execution import resolve
from nas.plan import Plan, change, make_plan
from nas.progress import Progress, Silent
from nas.recipe import Recipe, compressed
from nas.registry import is_plugin, load
from nas.result import (
    Result,
    is_finished,
    load_result,
    read_architecture,
    rounded,
    to_cpu,
    wilson,
    write_result,
)
from nas.run_folder import CHECKPOINT, begin, clear_checkpoints, open_folder
from nas.seeding import derive, isolated, rng
from nas.space import Space
from nas.task import Task, load_task
from nas.train import Curve, EpochReport, evaluate, train
from nas.types import Genotype

USED = (
    *("preset", "seed", "device", "execution", "deterministic"),
    *("space_settings", "final_settings", "retrain"),
)
"""The settings that a retraining reads, beside space and task."""


def retrain(
    architecture: str | Path | Mapping[str, Any],
    task: str | Task,
    *,
    out: str | Path,
    space: str | Space | None = None,
    settings: Mapping[str, object] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Result:
    """Trains a known architecture as the last phase of a search would; called again, it resumes.

    architecture: a finished run's folder, an architecture.json, or its content: at least `space`, `settings`
      and `choices`.
    space: must name the user's own space, or be it, where the architecture came from one.
    settings: those of `nas.Config` in `USED`, e.g. `{"preset": "standard", "retrain": {"epochs": 100}}`.

    Raises:
        NasError: when a setting, the space or the data cannot be used, or training fails.
    """
    progress = progress or Silent()
    data = (
        _checked(architecture) if isinstance(architecture, Mapping) else read_architecture(Path(architecture))
    )
    config = _config(data, space, task, settings)
    # The architecture keeps its own size, unless the preset asks for the space's full one.
    plan = replace(make_plan(config), final_size={})
    device = devices.resolve(config.device)
    resolve(plan.final.execution, device)
    loaded = (load_task(config.task, seed=config.seed) if isinstance(task, str) else task).to(device)
    searched = space if isinstance(space, Space) else _space(data, config, loaded)
    genotype = searched.genotype(data["choices"])
    final = final_space(config, plan, searched, loaded)
    recipe, notes = final_recipe(config, plan, final, loaded)
    folder = open_folder(out)
    with FolderLock(folder):
        begin(folder, config, plan, space=final, task=loaded, genotype=genotype, force=force)
        if is_finished(folder):
            progress.note(f"{folder} holds this run already, finished")
            clear_checkpoints(folder)
            return load_result(folder, space=final)
        for note in notes:
            progress.note(note)
        with devices.repeatable(enabled=config.deterministic):
            network, metrics = train_final(
                final,
                genotype,
                loaded,
                recipe,
                seed=derive(config.seed, "retrain"),
                folder=folder / CHECKPOINT / "retrain",
                progress=progress,
                stop=stop or (lambda: False),
            )
        graphs = cell_graphs(final, genotype)
        result = Result(
            final, genotype, graphs, to_cpu(network), rounded(metrics), (), folder, Inputs.of(loaded)
        )
        write_result(result, image_shape=loaded.image_shape, title=f"{final.name} on {loaded.name}")
        clear_checkpoints(folder)
    return result


def _checked(architecture: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("space", "settings", "choices"):
        if name not in architecture:
            raise ConfigError(f"the architecture has no {name!r}; it has {', '.join(sorted(architecture))}")
    return architecture


def _config(
    architecture: Mapping[str, Any],
    space: str | Space | None,
    task: str | Task,
    settings: Mapping[str, object] | None,
) -> Config:
    origin = str(architecture["space"]) if space is None else space if isinstance(space, str) else space.name
    if space is None and is_plugin(origin):
        raise ConfigError(f"the architecture's space {origin!r} is code of your own; name it with --space")
    names = {"space": origin, "task": task if isinstance(task, str) else task.name}
    config = make_config(with_names(settings, names))
    for name, value in Config():
        if name not in {*USED, *names} and getattr(config, name) != value:
            raise ConfigError(f"{name} is set, but a retraining uses only {', '.join(USED)}; remove it")
    if isinstance(space, Space) and config.space_settings:
        raise ConfigError(
            "space_settings are given, but the space is made already; make it with these settings"
        )
    return config


def _space(architecture: Mapping[str, Any], config: Config, task: Task) -> Space:
    return load(config.space, {**architecture["settings"], **offer(task)}, **config.space_settings)


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
            f"last training: {epochs} epochs, not {recipe.epochs}, for {images:,} images "
            f"(preset {config.preset}; --set retrain.epochs={recipe.epochs} trains longer)"
        )
        recipe = compressed(recipe, epochs)
    for name, reason in unsuited(recipe, space, task).items():
        if name in config.retrain:
            raise ConfigError(f"retrain.{name} is set, but {reason}; remove it")
        recipe = change(recipe, {name: 0}, "retrain")
        notes.append(f"{reason}: {name} off")
    return recipe, notes


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


def train_final(
    space: Space,
    genotype: Genotype,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path | None,
    progress: Progress,
    stop: Callable[[], bool],
) -> tuple[nn.Module, dict[str, float]]:
    """Trains one architecture on training and validation images, then measures test accuracy, once.

    folder: where its checkpoints live. A training that diverges or runs out of memory has a second chance
    (see `nas.easing`), which a note and the metrics `retrain_lr_factor` or `retrain_passes_per_step` tell.
    """

    def attempt(ease: Ease) -> tuple[nn.Module, Curve]:
        with isolated(seed, "init"):
            network = space.network(genotype).to(task.train.x.device)
        progress.phase("retrain", recipe.epochs)
        curve = train(
            network,
            task,
            ease.of(recipe),
            seed=seed,
            split=task.train_and_val(),
            checkpoints=None if folder is None else Checkpoints(ease.place(folder)),
            on_epoch=lambda report: progress.advance(epoch_line(report), done=report.epoch),
            backward=ease.backward,
            stop=stop,
        )
        return network, curve

    with user_errors():
        counted = affordable(space, genotype, task)
        (network, curve), ease = eased(attempt, folder=folder, batch=recipe.batch, note=progress.note)
        test_loss, test_acc = evaluate(network, task, task.test)
        if not math.isfinite(test_loss):
            raise TrialError("nan", f"the trained network's test loss is {test_loss}; lower retrain.lr")
        timed = latency(network, task.normalise(task.test.x[:1]))
    low, high = wilson(test_acc, len(task.test))
    return network, {
        "test_acc": test_acc,
        "test_acc_low": low,
        "test_acc_high": high,
        "test_loss": test_loss,
        "train_loss": curve.train_loss[-1],
        "params": counted.params,
        "macs": counted.macs,
        "activation_bytes": counted.activation_bytes,
        "latency_ms": timed.p50_ms,
        "latency_p95_ms": timed.p95_ms,
        "retrain_epochs": recipe.epochs,
        "retrain_seconds": sum(curve.seconds),
        **{f"retrain_{name}": value for name, value in ease.metrics.items()},
    }


def offer(task: Task) -> dict[str, object]:
    """What a task tells a space about its images."""
    channels, height, _ = task.image_shape
    return {"classes": task.num_classes, "in_channels": channels, "image_size": height}


def epoch_line(report: EpochReport) -> str:
    """One finished epoch in words."""
    return f"epoch {report.epoch}: loss {report.train_loss:.3f}, {report.seconds:.1f} s"
