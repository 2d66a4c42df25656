"""The last training: one architecture at its final size, on all images but the test split, and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from nas import devices
from nas.bundle.at_end import bundle_at_end, is_bundled
from nas.console import telling
from nas.data.inputs import Inputs
from nas.data.suspects import load_without, without
from nas.errors import ConfigError
from nas.evaluation.metrics import rounded
from nas.files.folder_lock import FolderLock
from nas.graph import cell_graphs
from nas.job.config import Config, make_config, with_names
from nas.job.final_network import final_recipe, final_space
from nas.job.final_training import RETRAIN, help_to_retrain, train_final
from nas.job.plan import Plan, make_plan
from nas.job.ranks import BEGIN, follow_to, help_all, team_notes
from nas.job.run_folder import CHECKPOINT, begin, clear_checkpoints, open_folder
from nas.job.suited import offer
from nas.oneshot.fused.execution import resolve, try_kernels
from nas.progress import Progress
from nas.registry import is_plugin, load
from nas.results.architecture_file import read_architecture
from nas.results.result import Result, is_finished, load_result, to_cpu
from nas.results.result_files import write_result
from nas.seeding import derive
from nas.space import Space
from nas.task import Task
from nas.tracking.choice import check_trackers, open_tracking
from nas.tracking.tracker import Tracker
from nas.tracking.tracking import Tracking
from nas.training.distributed import joined
from nas.training.recipe import Recipe
from nas.training.team import Team
from nas.types import Genotype

USED = (
    *("preset", "seed", "device", "execution", "graph", "deterministic", "rank_timeout", "exclude"),
    *("space_settings", "final_settings", "retrain", "export", "tensorboard", "mlflow"),
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
    config = _config(data, space, task, settings)
    with telling(progress) as told:
        with joined(limit_s=config.rank_timeout, stop=stop) as team:
            if team.leads:
                check_trackers(config)
            else:
                follow_to(out, team)
            job = _Retraining.made(data, config, space=space, task=task, team=team, stop=stop)
            if config.execution == "auto":
                try_kernels(job.task.train.x.device, told, stop=job.stop)
            if team.leads:
                result = _lead(job, config, Path(out), told, trackers=trackers, force=force)
            else:
                with devices.repeatable(enabled=config.deterministic):
                    help_all(team, {RETRAIN: lambda _: job.help()})
                return load_result(out, space=job.space)
        # Without the other ranks, which would wait in vain.
        if config.export and not is_bundled(result.folder):
            bundle_at_end(result, job.task, told)
        return result


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
        raise ConfigError(
            f"the architecture's space {origin!r} is code of your own; name it with --space to run it, "
            "in Python with space="
        )
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
