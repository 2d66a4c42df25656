"""The last training: one architecture at its final size, on all images but the test split, and its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nas import devices
from nas.data.exclusions import load_without
from nas.data.preprocessing import Inputs
from nas.data.task import Split, Task
from nas.errors import ConfigError, TrialError
from nas.evaluate.significance import rounded, wilson
from nas.evaluate.trained import affordable
from nas.results.result import Result, read_architecture, to_cpu
from nas.results.run_record import CHECKPOINT, RETRAIN
from nas.run.config import Config, make_config
from nas.run.final_network import final_recipe, final_space, offer
from nas.run.job import Job
from nas.run.preparation import (
    augmented,
    follow,
    follow_to,
    name_of,
    refuse_made,
    refuse_others,
    team_notes,
    with_names,
)
from nas.run.resolved_config import make_plan
from nas.run.result_files import write_result
from nas.run.run_folder import begun, clear_checkpoints, export, finished
from nas.run.step_timing import final_pace, suited
from nas.seeding import isolated
from nas.show.progress import Progress, telling
from nas.show.tracking.tracker import Tracker, of_epochs
from nas.space.graph import architecture_hash, cell_graphs
from nas.space.latency import LATENCY, latency
from nas.space.loading import is_plugin, load
from nas.space.space import Space
from nas.training.checkpoint import Checkpoints
from nas.training.ddp import Team, joined
from nas.training.evaluate import evaluate
from nas.training.recipe import Recipe, compressed
from nas.training.retry import Retry, with_retries
from nas.training.train import Curve, EpochReport, train
from nas.types import MOST, Genotype
from nas.user_code import user_errors

USED = (
    *("preset", "seed", "device", "execution", "graph", "deterministic", "rank_timeout"),
    *("augment", "exclude", "export", "tensorboard", "mlflow"),
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
    progress: Progress | bool | None = None,
    trackers: Sequence[Tracker] = (),
    stop: Callable[[], bool] | None = None,
) -> Result:
    """Trains a known architecture as the last phases of a search would; called again, it resumes.

    Under torchrun all ranks train it together, see docs/distributed.md.

    architecture: a finished run's folder, an architecture.json, or its content: at least `space`, `settings`
      and `choices`.
    space: must name the user's own space, or be it, where the architecture came from one.
    settings: those of `nas.Config` in `USED`, e.g. `{"preset": "standard", "retrain": {"epochs": 100}}`.
    progress: as of `nas.search`. trackers: told of every epoch, see there.

    Raises:
        NasError: when a setting, the space or the data cannot be used, or training fails.
        MismatchError: when a form of the bundle is not the scored model.
    """
    data = (
        _checked(architecture) if isinstance(architecture, Mapping) else read_architecture(Path(architecture))
    )
    config, place = _config(data, space, task, settings), Path(out)
    with telling(progress) as told:
        with joined(limit_s=config.rank_timeout) as team:
            if not team.leads:
                follow_to(place, team)
            job = _prepare(data, config, place, space=space, task=task, progress=told, stop=stop, team=team)
            if not team.leads:
                return follow(job, {RETRAIN: lambda value: help_to_retrain(job, tuple(value))})
            with begun(job, trackers, force=force) as job:
                result = finished(job) or _retrained(job)
                job.tracking.finish(result.metrics, job.folder)
        export(job, result)
    return result


def _prepare(
    data: Mapping[str, Any],
    config: Config,
    folder: Path,
    *,
    space: str | Space | None,
    task: str | Task,
    progress: Progress,
    stop: Callable[[], bool] | None,
    team: Team,
) -> Job:
    # The architecture keeps its own size, unless the preset asks for the space's full one.
    plan = replace(make_plan(config), final_size={})
    device = devices.resolve(config.device, local=team.local)
    task = load_without(task, config.exclude, seed=config.seed).to(device)
    plan, task, varied = augmented(config, plan, task)
    searched = space if isinstance(space, Space) else _space(data, config, task)
    final = final_space(config, plan, searched, task)
    recipe, notes = final_recipe(config, plan, final, task)
    genotype, stop = searched.genotype(data["choices"]), stop or (lambda: False)
    told = (f"augmentation {varied}", *notes, *team_notes(team, recipe.batch))
    return Job(
        config, plan, final, task, task, final, recipe, folder, progress, stop, genotype, team, notes=told
    )


def _retrained(job: Job) -> Result:
    """The work of a retraining."""
    assert job.genotype is not None
    space, genotype, task = job.final, job.genotype, job.task
    with devices.repeatable(enabled=job.config.deterministic):
        network, metrics = train_final(job, genotype, last_training(job, genotype))
    graphs = cell_graphs(space, genotype)
    result = Result(
        space, genotype, graphs, to_cpu(network), rounded(metrics), (), job.folder, Inputs.of(task)
    )
    write_result(result, image_shape=task.image_shape, title=f"{space.name} on {task.name}")
    clear_checkpoints(job.folder)
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
    origin = str(architecture["space"]) if space is None else name_of("space", space, who="retrain")
    if space is None and is_plugin(origin):
        raise ConfigError(
            f"the architecture's space {origin!r} is code of your own; name it with --space to run it, "
            "in Python with space="
        )
    names = {"space": origin, "task": name_of("task", task, who="retrain")}
    config = make_config(with_names(settings, names))
    refuse_others(config, USED, what="a retraining")
    refuse_made(space, config)
    return config


def _space(architecture: Mapping[str, Any], config: Config, task: Task) -> Space:
    return load(config.space, {**architecture["settings"], **offer(task)}, **config.space_settings)


# -- the training itself ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Last:
    """The last training: recipe, images, where its checkpoints are, and the share of its time that is over.

    elapsed: None where it takes as long as its epochs do.
    """

    recipe: Recipe
    split: Split
    folder: Path
    elapsed: Callable[[], float] | None = None


def last_training(job: Job, genotype: Genotype, *, reserve_s: float | None = None) -> Last:
    """As planned, or where there is a budget for as long as is left of it beyond `reserve_s`.

    Its schedule follows the time, so that it is never cut; its epochs only divide it, and are as many as a
    step of this very network says. Where the user has set epochs, it takes no longer than these should.
    """
    split, folder, clock = job.task.train_and_val(), job.folder / CHECKPOINT / "retrain", job.clock
    if reserve_s is None:
        return Last(job.recipe, split, folder)

    def choose() -> dict[str, float]:
        left_s = clock.left_s - reserve_s
        try:
            step_s = final_pace(job, genotype, limit_s=0.03 * left_s)
        except TrialError:  # which the training itself will raise
            step_s = 1.0
        epoch_s = step_s * max(1, len(split) // job.recipe.batch)
        began_s, left_s = clock.elapsed_s, clock.left_s - reserve_s
        if "epochs" in job.config.retrain:
            left_s = min(left_s, job.recipe.epochs * epoch_s)
        return {"epochs": max(1, round(left_s / epoch_s)), "began_s": began_s, "takes_s": left_s}

    decided = clock.decide(f"retrain {list(genotype)}", choose)
    began_s, takes_s = decided["began_s"], decided["takes_s"]
    recipe = replace(compressed(job.recipe, min(MOST, decided["epochs"])), schedule="step")

    def elapsed() -> float:
        clock.tick()
        left_s = min(clock.left_s - reserve_s, began_s + takes_s - clock.elapsed_s)  # less after Ctrl-C
        gone_s = clock.elapsed_s - began_s
        return gone_s / (gone_s + left_s) if left_s > 0 else 1.0

    name = f"retrain-{architecture_hash(job.final, genotype)[:8]}-{recipe.epochs}"
    return Last(recipe, split, folder.with_name(name), elapsed)


def train_final(job: Job, genotype: Genotype, last: Last) -> tuple[nn.Module, dict[str, float]]:
    """Trains one architecture at its final size, then measures test accuracy, once.

    The other ranks of a team are called to help. A training that diverges or runs out of memory has a second
    chance (`nas.training.retry`), which a note and the metrics `retrain_lr_factor` or
    `retrain_passes_per_step` tell.
    """
    with suited(job, RETRAIN, partial(final_pace, job, genotype)) as suited_job:
        return _trained(suited_job, genotype, last)


def _trained(job: Job, genotype: Genotype, last: Last) -> tuple[nn.Module, dict[str, float]]:
    task, progress = job.task, job.progress

    def attempt(retry: Retry) -> tuple[nn.Module, Curve]:
        network = _fresh(job, genotype)
        progress.phase("retrain", last.recipe.epochs if last.elapsed is None else None)
        job.team.call(RETRAIN, list(genotype))
        series = str(retry.place(Path(RETRAIN)))

        def told(report: EpochReport) -> None:
            progress.advance(str(report), done=report.epoch)
            job.tracking.tell(of_epochs(series, [report]))

        curve = train(
            network,
            task,
            retry.of(last.recipe),
            seed=job.seed(RETRAIN),
            split=last.split,
            checkpoints=Checkpoints(retry.place(last.folder)),
            on_epoch=told,
            passes=retry.passes,
            stop=job.stop,
            elapsed=last.elapsed,
            team=job.team,
        )
        job.tracking.tell(of_epochs(series, curve.reports()))  # what a killed process has not told
        return network, curve

    with user_errors():
        counted = affordable(job.final, genotype, task)
        (network, curve), retry = with_retries(
            attempt,
            folder=last.folder,
            batch=last.recipe.batch,
            note=progress.note,
            alone=job.team.size == 1,
        )
        measured = _measured(network, task)
    return network, {
        **measured,
        "train_loss": curve.train_loss[-1],
        "params": counted.params,
        "macs": counted.macs,
        "activation_bytes": counted.activation_bytes,
        "retrain_epochs": len(curve.train_loss),
        "retrain_seconds": sum(curve.seconds),
        **{f"retrain_{name}": value for name, value in retry.metrics.items()},
    }


def _measured(network: nn.Module, task: Task) -> dict[str, float]:
    """The test accuracy with its 95 % interval, the test loss, and the latency of one image."""
    test_loss, test_acc = evaluate(network, task, task.test)
    if not math.isfinite(test_loss):
        raise TrialError("nan", f"the trained network's test loss is {test_loss}; lower retrain.lr")
    timed = latency(network, task.normalise(task.test.x[:1]))
    low, high = wilson(test_acc, len(task.test))
    return {
        "test_acc": test_acc,
        "test_acc_low": low,
        "test_acc_high": high,
        "test_loss": test_loss,
        LATENCY: timed.p50_ms,
        "latency_p95_ms": timed.p95_ms,
    }


def help_to_retrain(job: Job, genotype: Genotype) -> None:
    """What the other ranks do while rank 0 trains the last network, which is never cut by a budget there."""
    split, seed = job.task.train_and_val(), job.seed(RETRAIN)
    with user_errors():
        network = _fresh(job, genotype)
        train(network, job.task, job.recipe, seed=seed, split=split, stop=job.stop, team=job.team)


def _fresh(job: Job, genotype: Genotype) -> nn.Module:
    with isolated(job.seed(RETRAIN), "init"):
        return job.final.network(genotype).to(job.task.train.x.device)
