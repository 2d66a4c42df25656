"""The whole job: search, train the best again with fresh seeds, train the winner in full, write the result.

Every phase can be killed at any moment; the same call goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nas import devices
from nas.audit import AUDIT_FILES, audit_task, write_audit
from nas.data.task import Task
from nas.errors import ConfigError, NasError, Stopped
from nas.export.bundle import bundle_at_end, is_bundled
from nas.files.folder_lock import FolderLock
from nas.oneshot.methods import Method
from nas.results.result import Result, is_finished, load_result
from nas.results.run_record import RETRAIN, SEARCH
from nas.run.clock import Clock
from nas.run.config import Config, make_config
from nas.run.cost_estimate import Preview, comparison
from nas.run.differentiable import help_to_search
from nas.run.final_training import help_to_retrain
from nas.run.forecast import EXPORT_S, Tell, foresee, preview
from nas.run.job import Job
from nas.run.pipeline import whole_job
from nas.run.preparation import BEGIN, default_folder, follow_to, help_all, name_of, prepare, with_names
from nas.run.run_folder import begin, clear_checkpoints, open_folder
from nas.run.supernet_phase import SHARED, help_with_weights
from nas.searchers.method_names import OWN
from nas.show.console import telling
from nas.show.progress import Progress, Silent, Wanted
from nas.show.tracking.mlflow import MLflow
from nas.show.tracking.tensorboard import TensorBoard
from nas.show.tracking.tracker import NO_TRACKING, Feed, Run, Tracker, Tracking
from nas.space.loading import is_plugin
from nas.space.space import Space
from nas.training.ddp import Team
from nas.training.distributed import joined

AUTO = "auto"
TENSORBOARD = "tensorboard"
"""The folder in a run's folder where its event files are unless another one is named."""


def check_trackers(config: Config) -> None:
    """Raises ConfigError when a tracker that is asked for is not installed or cannot be used."""
    for name, wanted in (("tensorboard", config.tensorboard), ("mlflow", config.mlflow)):
        if wanted is not None and find_spec(name) is None:
            raise ConfigError(
                f"{name} is {wanted!r}, but the package {name} is not installed; "
                f"pip install 'nas-engine[{name}]'"
            )
    if config.mlflow is not None and urlsplit(config.mlflow).password is not None:
        raise ConfigError(
            "the mlflow URI holds a password, which would be written into the run's record; give the whole "
            "URI in the environment variable MLFLOW_TRACKING_URI (with --mlflow auto), or the password of a "
            "server in MLFLOW_TRACKING_PASSWORD"
        )


def open_tracking(
    config: Config,
    folder: Path,
    record: Mapping[str, object],
    *,
    own: Sequence[Tracker],
    note: Callable[[str], None],
) -> Tracking:
    """Begins to track a run.

    record: its `run.json`. own: trackers that were given in Python.
    """
    trackers = [
        *_made(config, folder).items(),
        *((type(tracker).__name__, tracker) for tracker in own),
    ]
    if not trackers:
        return NO_TRACKING
    if config.tensorboard is not None:
        note(f"to watch the run: tensorboard --logdir {_event_folder(config.tensorboard, folder)}")
    run = Run(str(record.get("run", folder.name)), folder, _settings(config))
    return Tracking([Feed(name, tracker, run) for name, tracker in trackers], note=note)


def _made(config: Config, folder: Path) -> dict[str, Tracker]:
    """The trackers that the settings ask for, by name."""
    found: dict[str, Tracker] = {}
    if config.tensorboard is not None:
        found["tensorboard"] = TensorBoard(_event_folder(config.tensorboard, folder))
    if config.mlflow is not None:
        found["mlflow"] = MLflow(None if config.mlflow == AUTO else config.mlflow)
    return found


def _event_folder(wanted: str, folder: Path) -> Path:
    """Where the event files of a run go."""
    return folder / TENSORBOARD if wanted == AUTO else Path(wanted)


def _settings(config: Config) -> dict[str, str]:
    """What differs from the defaults, and the names of what is searched, as text."""
    named = ("space", "task", "method", "preset", "seed")
    values = {**{name: getattr(config, name) for name in named}, **config.model_dump(exclude_defaults=True)}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


Prepare = Callable[[Progress, Team], tuple[Job, list[str]]]
"""Makes a job of what was asked, checked before anything is written, and notes on it for the user."""


def carry_out(
    config: Config,
    place: Path,
    prepare: Prepare,
    work: Callable[[Job], Result],
    *,
    progress: Wanted,
    trackers: Sequence[Tracker],
    stop: Callable[[], bool] | None,
    force: bool,
) -> Result:
    """Prepares a job on every rank and does its work in its folder, which may hold its result already.

    work: done by rank 0, which calls the others to its trainings; writes the result and returns it.
    progress, trackers, stop, force: as of `nas.search`.
    """
    with telling(progress) as told:
        with joined(limit_s=config.rank_timeout, stop=stop) as team:
            if team.leads:
                check_trackers(config)
            else:
                follow_to(place, team)
            job, notes = prepare(told if team.leads else Silent(), team)
            if not team.leads:
                _follow(job)
                return load_result(place, space=job.final)
            result = _lead(job, notes, work, trackers, force=force)
        # Without the other ranks, which would wait in vain.
        if config.export and not is_bundled(result.folder):
            if job.clock.left_s < EXPORT_S:
                job.progress.note(f"budget: no time for a bundle; nas export {result.folder} writes it")
            else:
                bundle_at_end(result, job.task, job.progress)
        return result


def _lead(
    job: Job, notes: Sequence[str], work: Callable[[Job], Result], trackers: Sequence[Tracker], *, force: bool
) -> Result:
    folder = open_folder(job.folder)
    job = replace(job, folder=folder)
    with FolderLock(folder):
        record = begin(
            folder,
            job.config,
            job.plan,
            space=job.space,
            task=job.task,
            genotype=job.genotype,
            ranks=job.team.size,
            force=force,
        )
        job.team.call(BEGIN)
        note = job.progress.note
        with open_tracking(job.config, folder, record, own=trackers, note=note) as tracking:
            result = _result(replace(job, tracking=tracking), notes, work)
            tracking.finish(result.metrics, folder)
    return result


def _result(job: Job, notes: Sequence[str], work: Callable[[Job], Result]) -> Result:
    if is_finished(job.folder):
        job.progress.note(f"{job.folder} holds this run already, finished")
        clear_checkpoints(job.folder)
        # Its own record knows the size of its network, which a budget may have chosen.
        named = job.config.space if is_plugin(job.config.space) else None
        return load_result(job.folder, space=named if job.final.origin else job.final)
    job.clock.open(job.folder)
    for note in notes:
        job.progress.note(note)
    return work(job)


def _follow(job: Job) -> None:
    """What the other ranks do: they join the trainings that rank 0 calls them to, until the job ends."""
    phases = {
        SEARCH: lambda _: help_to_search(job),
        SHARED: lambda _: help_with_weights(job),
        RETRAIN: lambda genotype: help_to_retrain(job, tuple(genotype)),
    }
    with devices.repeatable(enabled=job.config.deterministic):
        help_all(job.team, phases)


def search(
    space: str | Space = "darts",
    task: str | Task = "digits",
    method: str | Method = "is-darts",
    *,
    out: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    force: bool = False,
    progress: Progress | bool | None = None,
    trackers: Sequence[Tracker] = (),
    stop: Callable[[], bool] | None = None,
    executor: Executor | None = None,
) -> Result:
    """Finds an architecture, trains it, and leaves everything in a folder; called again, it resumes.

    Under torchrun all ranks train supernets and the last network together, see docs/distributed.md.

    space: a name, `module:function`, `file.py:function`, or a `Space`.
    task: a name that `load_task` knows, or a `Task`.
    method: one of `nas.searchers.method_names.METHODS`, e.g. `guided`, `nsga2`, `drnas`, `optuna:` and a
      sampler's name, or a `Method` put together in Python.
    out: the run's folder, by default `results/SPACE-TASK-METHOD`.
    settings: any other setting of `nas.Config`, e.g. `{"epochs": 2, "seed": 1, "retrain": {"lr": 0.1}}`.
    force: go on although the data are no longer those that the run began with.
    progress: told what is done; True prints it on standard error, and nothing is said unless given.
    trackers: told of every trial and epoch, beside those that `tensorboard` and `mlflow` in the settings ask
      for; see `nas.show.tracking.tracker.Tracker`.
    stop: asked often; when true, the state is saved and `Stopped` raised.
    executor: evaluates the trials, as many at a time as `workers` says, e.g. a `ThreadPoolExecutor` (whose
      trials share torch's random state, so that they cannot be repeated), or that of a cluster.

    Raises:
        NasError: when a setting, the space or the data cannot be used, or no valid model was found.
    """
    names = {
        "space": name_of("space", space, who="search"),
        "task": name_of("task", task, who="search"),
        "method": method if isinstance(method, str) else f"{OWN}{name_of('method', method, who='search')}",
    }
    config = make_config(with_names(settings, names))
    return run_job(
        config,
        out=out,
        space=space if isinstance(space, Space) else None,
        task=task if isinstance(task, Task) else None,
        method=method if isinstance(method, Method) else None,
        force=force,
        progress=progress,
        trackers=trackers,
        stop=stop,
        executor=executor,
    )


def run_job(
    config: Config,
    *,
    out: str | Path | None = None,
    space: Space | None = None,
    task: Task | None = None,
    method: Method | None = None,
    force: bool = False,
    progress: Progress | bool | None = None,
    trackers: Sequence[Tracker] = (),
    stop: Callable[[], bool] | None = None,
    clock: Clock | None = None,
    tell: Tell | None = None,
    executor: Executor | None = None,
) -> Result:
    """Runs or resumes the job of a configuration; space, task and method, if given, come before its names.

    force, progress, trackers, stop, executor: as of `nas.search`.
    clock: counts its time and holds its budget; begun now with that of the configuration unless given.
    tell: is shown what the job will cost before anything is trained, and says whether to go on.
    """
    clock = clock or Clock(config.budget)
    place = Path(out) if out is not None else default_folder(config)
    return carry_out(
        config,
        place,
        lambda told, team: _prepared(
            config,
            place,
            space=space,
            task=task,
            method=method,
            progress=told,
            stop=stop,
            team=team,
            clock=clock,
        ),
        partial(_searched, tell=tell, executor=executor),
        progress=progress,
        trackers=trackers,
        stop=stop,
        force=force,
    )


def look(config: Config, *, progress: Progress | None = None) -> Preview:
    """What the job of a configuration would cost on its device; nothing is written."""
    job, _ = _prepared(config, default_folder(config), progress=progress, clock=Clock(config.budget))
    return preview(job)


def _prepared(config: Config, place: Path, **parts: Any) -> tuple[Job, list[str]]:  # noqa: ANN401
    """As `prepare`; refuses a space without the supernet that the method needs."""
    job, notes = prepare(config, place, **parts)
    if job.has_choice and (config.is_differentiable or config.shares_weights):
        job.space.check_supernet()
    return job, notes


def _searched(job: Job, *, tell: Tell | None, executor: Executor | None) -> Result:
    """The work of a search: audits where that is wanted, says what it will cost, and does it."""
    job = replace(job, executor=executor)
    for note in _audited(job):
        job.progress.note(note)
    with devices.repeatable(enabled=job.config.deterministic):
        try:
            job, ahead = foresee(job, tell)
            result = whole_job(job, ahead)
        except (NasError, Stopped):
            job.clock.save()
            raise
    if ahead is not None:
        took_s = job.clock.elapsed_s
        job.progress.note(comparison(ahead.seconds, took_s, before_s=ahead.spent_s))
    return result


def _audited(job: Job) -> list[str]:
    """Audits the task where the job wants that, leaves the findings in its folder, and tells them."""
    if not job.config.audit or (job.folder / AUDIT_FILES[0]).is_file():
        return []
    job.progress.note("auditing images and labels")
    found = audit_task(job.task, seed=job.config.seed)
    paths = write_audit(found, job.task, job.folder)
    return [*found.summary(), f"suspect images: {paths[1]}"]
