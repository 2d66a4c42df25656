"""The last training: one architecture at its final size, on all images but the test split, and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas import devices
from nas.data.exclusions import load_without
from nas.data.preprocessing import Inputs
from nas.data.task import Task
from nas.errors import ConfigError
from nas.evaluate.significance import rounded
from nas.results.architecture_file import read_architecture
from nas.results.result import Result, to_cpu
from nas.run.budget import BudgetPlan
from nas.run.config import Config, make_config
from nas.run.final_network import final_recipe, final_space, offer
from nas.run.final_training import last_training, train_final
from nas.run.job import Job
from nas.run.pipeline import begun, export, finished, follow
from nas.run.preparation import (
    augmented,
    follow_to,
    name_of,
    refuse_made,
    refuse_others,
    team_notes,
    with_names,
)
from nas.run.resolved_config import make_plan
from nas.run.run_folder import clear_checkpoints, write_result
from nas.show.console import telling
from nas.show.progress import Progress
from nas.show.tracking.tracker import Tracker
from nas.space.graph import cell_graphs
from nas.space.loading import is_plugin, load
from nas.space.space import Space
from nas.training.ddp import Team
from nas.training.distributed import joined

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
        with joined(limit_s=config.rank_timeout, stop=stop) as team:
            if not team.leads:
                follow_to(place, team)
            job = _prepare(data, config, place, space=space, task=task, progress=told, stop=stop, team=team)
            if not team.leads:
                return follow(job)
            with begun(job, trackers, force=force) as job:
                result = finished(job) or _trained(job)
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


def _trained(job: Job) -> Result:
    """The work of a retraining."""
    assert job.genotype is not None
    space, genotype, task = job.final, job.genotype, job.task
    with devices.repeatable(enabled=job.config.deterministic):
        network, metrics = train_final(job, genotype, last_training(job, genotype, BudgetPlan()))
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
