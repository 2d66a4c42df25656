"""The last training: one architecture at its final size, on all images but the test split, and its result."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nas import devices
from nas.cell import Cell
from nas.checkpoint import Checkpoints
from nas.config import Config, make_config
from nas.cost import cost, latency
from nas.errors import ConfigError
from nas.evaluate import user_errors
from nas.files import FolderLock
from nas.graph import cell_graphs
from nas.load import is_plugin, load
from nas.plan import Plan, make_plan
from nas.progress import Progress, Silent
from nas.recipe import Recipe, compressed
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
from nas.run_folder import begin, open_folder
from nas.seeding import derive, isolated
from nas.space import Space
from nas.task import Task, load_task
from nas.train import EpochReport, evaluate, train
from nas.types import Genotype


def retrain(
    architecture: str | Path | Mapping[str, Any],
    task: str | Task,
    *,
    out: str | Path,
    space: str | None = None,
    settings: Mapping[str, object] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Result:
    """Trains a known architecture as the last phase of a search would; called again, it resumes.

    architecture: a finished run's folder, an architecture.json, or its content: at least `space`, `settings`
      and `choices`.
    space: must name the user's own space where the architecture came from one.
    settings: of `nas.Config`, e.g. `{"preset": "standard", "seed": 1, "retrain": {"epochs": 100}}`.

    Raises:
        NasError: when a setting, the space or the data cannot be used, or training fails.
    """
    progress = progress or Silent()
    data = architecture if isinstance(architecture, Mapping) else read_architecture(Path(architecture))
    origin = space or str(data["space"])
    if space is None and is_plugin(origin):
        raise ConfigError(f"the architecture's space {origin!r} is code of your own; name it with --space")
    names = {"space": origin, "task": task if isinstance(task, str) else task.name}
    config = make_config({**(settings or {}), **names})
    plan = make_plan(config)
    device = devices.resolve(config.device)
    loaded = (load_task(config.task, seed=config.seed) if isinstance(task, str) else task).to(device)
    searched = load(origin, {**data["settings"], **offer(loaded)}, **config.space_settings)
    genotype = searched.genotype(data["choices"])
    final = final_space(config, plan, searched, loaded)
    folder = open_folder(out)
    with FolderLock(folder):
        begin(folder, config, plan, space=final, task=loaded, genotype=genotype, force=force)
        if is_finished(folder):
            progress.note(f"{folder} holds this run already, finished")
            return load_result(folder, space=final)
        network, metrics = train_final(
            final,
            genotype,
            loaded,
            config=config,
            plan=plan,
            seed=derive(config.seed, "retrain"),
            checkpoints=Checkpoints(folder / "checkpoint" / "retrain"),
            progress=progress,
            stop=stop or (lambda: False),
        )
        graphs = cell_graphs(final, genotype)
        result = Result(final, genotype, graphs, to_cpu(network), rounded(metrics), (), folder)
        write_result(result, image_shape=loaded.image_shape, title=f"{final.name} on {loaded.name}")
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return result


def final_space(config: Config, plan: Plan, space: Space, task: Task) -> Space:
    """The space at the size of the last network.

    From weak to strong: the searched size, the space's full size (where the preset asks for it), the preset's
    final size, the user's `space_settings`, the user's `final_settings`.
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


def final_recipe(
    config: Config, plan: Plan, space: Space, network: nn.Module, *, images: int
) -> tuple[Recipe, list[str]]:
    """The recipe of the last training, less what the preset asks for and this network does not have.

    images: in one epoch; the preset may bound how many are shown in all.
    """
    recipe, notes = plan.final, []
    if plan.final_images is not None and recipe.epochs * images > plan.final_images:
        epochs = max(1, round(plan.final_images / images))
        notes.append(
            f"last training: {epochs} epochs, not {recipe.epochs}, for {images:,} images "
            f"(preset {config.preset}; --set retrain.epochs={recipe.epochs} trains longer)"
        )
        recipe = compressed(recipe, epochs)
    if recipe.auxiliary and "auxiliary" not in config.retrain and not space.settings.get("auxiliary"):
        recipe = dataclasses.replace(recipe, auxiliary=0.0)
        notes.append(f"space {space.name!r} has no auxiliary head here: auxiliary loss off")
    has_cells = any(isinstance(module, Cell) for module in network.modules())
    if recipe.drop_path and "drop_path" not in config.retrain and not has_cells:
        recipe = dataclasses.replace(recipe, drop_path=0.0)
        notes.append(f"space {space.name!r} has no cells: drop-path off")
    return recipe, notes


def train_final(
    space: Space,
    genotype: Genotype,
    task: Task,
    *,
    config: Config,
    plan: Plan,
    seed: int,
    checkpoints: Checkpoints | None,
    progress: Progress,
    stop: Callable[[], bool],
) -> tuple[nn.Module, dict[str, float]]:
    """Trains one architecture on training and validation images, then measures test accuracy, once."""
    with user_errors():
        with isolated(seed, "init"):
            network = space.network(genotype).to(task.train.x.device)
        images = task.train_and_val()
        recipe, notes = final_recipe(config, plan, space, network, images=len(images))
        for note in notes:
            progress.note(note)
        progress.phase("retrain", recipe.epochs)
        curve = train(
            network,
            task,
            recipe,
            seed=seed,
            split=images,
            checkpoints=checkpoints,
            on_epoch=lambda report: progress.advance(epoch_line(report)),
            stop=stop,
        )
        test_loss, test_acc = evaluate(network, task, task.test)
        counted = cost(space, genotype, task.image_shape)
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
    }


def offer(task: Task) -> dict[str, object]:
    """What a task tells a space about its images."""
    channels, height, _ = task.image_shape
    return {"classes": task.num_classes, "in_channels": channels, "image_size": height}


def epoch_line(report: EpochReport) -> str:
    """One finished epoch in words."""
    return f"epoch {report.epoch}: loss {report.train_loss:.3f}, {report.seconds:.1f} s"
