"""The whole job: search, train the best again with fresh seeds, train the winner in full, write the result.

Every phase can be killed at any moment; the same call goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nas import devices
from nas.audit import AUDIT_FILES, audit_task, write_audit
from nas.data.task import Task
from nas.errors import NasError, Stopped
from nas.oneshot.method import Method
from nas.results.result import Result
from nas.run.arguments import name_of, with_names
from nas.run.clock import Clock
from nas.run.config import Config, make_config
from nas.run.cost_estimate import Preview, comparison
from nas.run.forecast import Tell, foresee, preview
from nas.run.job import Job
from nas.run.lifecycle import carry_out
from nas.run.pipeline import whole_job
from nas.run.preparation import default_folder, prepare
from nas.searchers.method_names import OWN
from nas.show.progress import Progress
from nas.show.tracking.tracker import Tracker
from nas.space.space import Space


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
