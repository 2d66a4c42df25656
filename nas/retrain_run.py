"""The last training: one architecture at its final size, on all images but the test split, and its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from nas import devices
from nas.cell import Cell
from nas.checkpoint import Checkpoints
from nas.config import Config, make_config, with_names
from nas.distributed import END, joined
from nas.easing import Ease, eased
from nas.errors import ConfigError, SpaceError, TrialError
from nas.evaluate import affordable
from nas.files import FolderLock
from nas.graph import cell_graphs
from nas.guard import user_errors
from nas.inputs import Inputs
from nas.latency import latency
from nas.loop import images_of
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
from nas.suspects import load_without, without
from nas.task import Split, Task
from nas.team import ALONE, Team
from nas.tracking.choice import check_trackers, open_tracking
from nas.tracking.points import of_curve, of_report
from nas.tracking.tracker import Tracker
from nas.tracking.tracking import NO_TRACKING, Tracking
from nas.train import Curve, EpochReport, evaluate, train
from nas.types import Genotype

USED = (
    *("preset", "seed", "device", "execution", "graph", "deterministic", "rank_timeout", "exclude"),
    *("space_settings", "final_settings", "retrain", "tensorboard", "mlflow"),
)
"""The settings that a retraining reads, beside space and task."""
BEGIN, RETRAIN = "begin", "retrain"
"""What the start of a job and its last training are called between ranks."""


def retrain(
    architecture: str | Path | Mapping[str, Any],
    task: str | Task,
    *,
    out: str | Path,
    space: str | Space | None = None,
    settings: Mapping[str, object] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    trackers: Sequence[Tracker] = (),
    stop: Callable[[], bool] | None = None,
) -> Result:
    """Trains a known architecture as the last phase of a search would; called again, it resumes.

    Under torchrun all ranks train it together, see docs/distributed.md.

    architecture: a finished run's folder, an architecture.json, or its content: at least `space`, `settings`
      and `choices`.
    space: must name the user's own space, or be it, where the architecture came from one.
    settings: those of `nas.Config` in `USED`, e.g. `{"preset": "standard", "retrain": {"epochs": 100}}`.
    trackers: told of every epoch, see `nas.search`.

    Raises:
        NasError: when a setting, the space or the data cannot be used, or training fails.
    """
    progress = progress or Silent()
    data = (
        _checked(architecture) if isinstance(architecture, Mapping) else read_architecture(Path(architecture))
    )
    config = _config(data, space, task, settings)
    with joined(limit_s=config.rank_timeout, stop=stop) as team:
        if team.leads:
            check_trackers(config)
        else:
            follow_to(out, team)
        job = _Retraining.made(data, config, space=space, task=task, team=team, stop=stop)
        if team.leads:
            return _lead(job, config, Path(out), progress, trackers=trackers, force=force)
        with devices.repeatable(enabled=config.deterministic):
            help_all(team, {RETRAIN: lambda _: job.help()})
        return load_result(out, space=job.space)


@dataclass(frozen=True, eq=False)
class _Retraining:
    """All that a retraining needs, on every rank."""

    space: Space
    genotype: Genotype
    task: Task
    plan: Plan
    recipe: Recipe
    notes: Sequence[str]
    seed: int
    team: Team
    stop: Callable[[], bool]

    @classmethod
    def made(
        cls,
        data: Mapping[str, Any],
        config: Config,
        *,
        space: str | Space | None,
        task: str | Task,
        team: Team,
        stop: Callable[[], bool] | None,
    ) -> Self:
        # The architecture keeps its own size, unless the preset asks for the space's full one.
        plan = replace(make_plan(config), final_size={})
        device = devices.resolve(config.device, local=team.local)
        resolve(plan.final.execution, device)
        if isinstance(task, str):
            loaded = load_without(config.task, config.exclude, seed=config.seed)
        else:
            loaded = task if config.exclude is None else without(task, config.exclude)
        loaded = loaded.to(device)
        searched = space if isinstance(space, Space) else _space(data, config, loaded)
        final = final_space(config, plan, searched, loaded)
        recipe, notes = final_recipe(config, plan, final, loaded)
        genotype, seed = searched.genotype(data["choices"]), derive(config.seed, "retrain")
        asked = stop or (lambda: False)
        return cls(final, genotype, loaded, plan, recipe, notes, seed, team, asked)

    def help(self) -> None:
        help_to_retrain(
            self.space,
            self.genotype,
            self.task,
            self.recipe,
            seed=self.seed,
            stop=self.stop,
            team=self.team,
        )


def _lead(
    job: _Retraining,
    config: Config,
    out: Path,
    progress: Progress,
    *,
    trackers: Sequence[Tracker],
    force: bool,
) -> Result:
    folder = open_folder(out)
    space, genotype, task, team = job.space, job.genotype, job.task, job.team
    with FolderLock(folder):
        record = begin(
            folder, config, job.plan, space=space, task=task, genotype=genotype, ranks=team.size, force=force
        )
        team.call(BEGIN)
        with open_tracking(config, folder, record, own=trackers, note=progress.note) as tracking:
            if is_finished(folder):
                progress.note(f"{folder} holds this run already, finished")
                clear_checkpoints(folder)
                result = load_result(folder, space=space)
            else:
                for note in [*job.notes, *team_notes(team, job.recipe.batch)]:
                    progress.note(note)
                result = _trained(job, config, folder, progress, tracking)
            tracking.finish(result.metrics, folder)
    return result


def _trained(
    job: _Retraining, config: Config, folder: Path, progress: Progress, tracking: Tracking
) -> Result:
    space, genotype, task = job.space, job.genotype, job.task
    with devices.repeatable(enabled=config.deterministic):
        network, metrics = train_final(
            space,
            genotype,
            task,
            job.recipe,
            seed=job.seed,
            folder=folder / CHECKPOINT / "retrain",
            progress=progress,
            stop=job.stop,
            team=job.team,
            tracking=tracking,
        )
    graphs = cell_graphs(space, genotype)
    result = Result(space, genotype, graphs, to_cpu(network), rounded(metrics), (), folder, Inputs.of(task))
    write_result(result, image_shape=task.image_shape, title=f"{space.name} on {task.name}")
    clear_checkpoints(folder)
    return result


def follow_to(out: str | Path, team: Team) -> None:
    """Waits on another rank until rank 0 has begun the job in its folder.

    Raises:
        ConfigError: when this rank does not see that folder.
    """
    team.call(BEGIN)
    if not (Path(out) / "run.json").is_file():
        raise ConfigError(
            f"rank {team.rank} does not see the run folder {str(out)!r} of rank 0; choose an --out folder "
            "that all machines share"
        )


def help_all(team: Team, phases: Mapping[str, Callable[[Any], None]]) -> None:
    """Does on another rank what rank 0 calls to, until the end of the job."""
    while (called := team.called())[0] != END:
        phase, value = called
        phases[phase](value)


def team_notes(team: Team, *batches: int) -> list[str]:
    """What the user should know of trainings over several processes.

    Raises:
        ConfigError: when a batch is too small to be divided.
    """
    if team.size == 1:
        return []
    shares = [f"{images_of(team, batch)} of {batch}" for batch in dict.fromkeys(batches)]
    return [f"{team.size} ranks train together: each takes {' or '.join(shares)} images of a batch"]


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
    split: Split | None = None,
    left_s: Callable[[], float] | None = None,
    team: Team = ALONE,
    tracking: Tracking = NO_TRACKING,
) -> tuple[nn.Module, dict[str, float]]:
    """Trains one architecture on training and validation images, then measures test accuracy, once.

    The other ranks of a team are called to help.

    split: the images to learn from. left_s: see `nas.train.train`.
    folder: where its checkpoints live. A training that diverges or runs out of memory has a second chance
      (see `nas.easing`), which a note and the metrics `retrain_lr_factor` or `retrain_passes_per_step` tell.
    """

    def attempt(ease: Ease) -> tuple[nn.Module, Curve]:
        network = _fresh(space, genotype, task, seed)
        progress.phase("retrain", recipe.epochs)
        team.call(RETRAIN, list(genotype))
        series = str(ease.place(Path(RETRAIN)))

        def told(report: EpochReport) -> None:
            progress.advance(epoch_line(report), done=report.epoch)
            tracking.tell([of_report(series, report)])

        curve = train(
            network,
            task,
            ease.of(recipe),
            seed=seed,
            split=task.train_and_val() if split is None else split,
            checkpoints=None if folder is None else Checkpoints(ease.place(folder)),
            on_epoch=told,
            backward=ease.backward,
            stop=stop,
            left_s=left_s,
            team=team,
        )
        tracking.tell(of_curve(series, curve))  # what a killed process has not told
        return network, curve

    with user_errors():
        counted = affordable(space, genotype, task)
        (network, curve), ease = eased(
            attempt, folder=folder, batch=recipe.batch, note=progress.note, alone=team.size == 1
        )
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
        "retrain_epochs": len(curve.train_loss),
        "retrain_seconds": sum(curve.seconds),
        **{f"retrain_{name}": value for name, value in ease.metrics.items()},
    }


def help_to_retrain(
    space: Space,
    genotype: Genotype,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    stop: Callable[[], bool],
    team: Team,
) -> None:
    """What the other ranks do while rank 0 trains the last network."""
    with user_errors():
        network = _fresh(space, genotype, task, seed)
        train(network, task, recipe, seed=seed, split=task.train_and_val(), stop=stop, team=team)


def _fresh(space: Space, genotype: Genotype, task: Task, seed: int) -> nn.Module:
    with isolated(seed, "init"):
        return space.network(genotype).to(task.train.x.device)


def offer(task: Task) -> dict[str, object]:
    """What a task tells a space about its images."""
    channels, height, _ = task.image_shape
    return {"classes": task.num_classes, "in_channels": channels, "image_size": height}


def epoch_line(report: EpochReport) -> str:
    """One finished epoch in words."""
    return f"epoch {report.epoch}: loss {report.train_loss:.3f}, {report.seconds:.1f} s"
