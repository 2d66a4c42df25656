"""A worker that joins a study: it makes the same job of what the study says, and does trials of it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna.storages import BaseStorage

from nas import __version__, devices
from nas.config import Config, make_config
from nas.errors import ConfigError, SpaceError
from nas.files import prepare_folder
from nas.job import Job
from nas.journal import journal_storage
from nas.progress import Progress
from nas.registry import is_plugin
from nas.run_folder import describe_run, read_run, refuse_another_job
from nas.search_run import prepare
from nas.study import JOURNAL
from nas.trial_search import RECORD, SEARCH, trial_search
from nas.trial_setup import trial_line
from nas.workers.identity import Identity


@dataclass(frozen=True)
class Home:
    """Where a study lives.

    folder: that of its run, for checkpoints that all workers share; None where it cannot be reached.
    """

    storage: BaseStorage
    name: str = SEARCH
    folder: Path | None = None


def home_in(folder: Path) -> Home:
    """The study of a run's folder.

    Raises:
        ConfigError: when there is none.
    """
    read_run(folder)
    return Home(journal_storage(folder.resolve() / JOURNAL), folder=folder.resolve())


def join(
    home: Home,
    *,
    progress: Progress,
    stop: Callable[[], bool],
    space: str | None = None,
    task: str | None = None,
    device: str | None = None,
    scratch: Path | None = None,
) -> str:
    """Does trials of a study until it is at its end; returns why it ended.

    space: must name the user's own code where the study has such a space: none is run unasked.
    task: where the same images are on this machine, if elsewhere than the study says.
    scratch: where trials that are being trained are saved if there is no folder of the run; by default a
      temporary folder, gone in the end.

    Raises:
        Stopped: when `stop` said so; the trial was saved and given back.
        NasError: when the study cannot be joined or the search cannot go on.
    """
    record = _record(home)
    config, ignoring = _own_config(record, space=space, task=task, device=device)
    with _place(home, config, scratch) as folder:
        job, _ = prepare(config, folder, progress=progress, stop=stop)
        job = dataclasses.replace(job, folder=folder)
        now = describe_run(config, job.plan, job.space, job.task)
        refuse_another_job(record, now, ignoring=ignoring)
        for note in _differing_versions(record):
            progress.note(note)
        with devices.repeatable(enabled=config.deterministic):
            return _work(home, job, spend_s=record["spend_s"])


def _work(home: Home, job: Job, *, spend_s: float | None) -> str:
    if job.plan.searcher is None or job.config.shares_weights:
        raise ConfigError(f"method {job.config.method!r} has no trials that several workers could share")
    identity = Identity.of_this_process()
    search = trial_search(job, job.plan.searcher, home.storage, identity=identity, spend_s=spend_s)
    job.progress.phase("search", job.plan.trials, done=search.study.ended)
    return search.study.run(
        search.evaluate,
        trials=job.plan.trials,
        stop=search.enough,
        on_trial=lambda trial: job.progress.advance(trial_line(trial)),
    )


def _record(home: Home) -> Mapping[str, Any]:
    """What the coordinator left with the study."""
    studies = {study.study_name: study for study in home.storage.get_all_studies()}
    if home.name not in studies:
        known = ", ".join(sorted(studies)) or "no study yet"
        raise ConfigError(f"there is no study {home.name!r} to join, but {known}; begin one with nas search")
    record = studies[home.name].user_attrs.get(RECORD)
    if not isinstance(record, Mapping):
        raise ConfigError(
            f"study {home.name!r} does not say what its job is: its method has no trials that several workers"
            " could share, or nas search has not begun them yet"
        )
    return record


def _own_config(
    record: Mapping[str, Any], *, space: str | None, task: str | None, device: str | None
) -> tuple[Config, list[str]]:
    """The study's configuration on this machine, and the settings that may differ from the study's."""
    config = make_config(record["config"], where="the study's settings")
    changes: dict[str, object] = {} if device is None else {"device": device}
    ignoring: list[str] = []
    if is_plugin(config.space) and space is None:
        raise ConfigError(
            f"the study searches a space of somebody's own, {config.space}; name the code to run with --space"
        )
    if space is not None and not is_plugin(config.space):
        raise SpaceError(f"--space is {space}, but the study searches {config.space!r}; remove it")
    if space is not None:
        changes["space"] = space
        ignoring += ["config.space", "space.origin"]
    if task is not None:
        changes["task"] = task
        ignoring += ["config.task"]
    return config.model_copy(update=changes), ignoring


@contextmanager
def _place(home: Home, config: Config, scratch: Path | None) -> Iterator[Path]:
    """Where the trials are saved while they are trained."""
    if home.folder is not None:
        yield home.folder
        return
    if config.warm_start == "parent":
        raise ConfigError(
            "warm_start is parent, so trials go on from the weights of others; join with the run's folder"
        )
    if scratch is not None:
        yield prepare_folder(scratch)
        return
    with tempfile.TemporaryDirectory(prefix="nas-worker-") as folder:
        yield Path(folder)


def _differing_versions(record: Mapping[str, Any]) -> Iterator[str]:
    own = {"nas-engine": __version__, "torch": torch.__version__.partition("+")[0]}
    for name, version in own.items():
        theirs = str(record["environment"].get(name)).partition("+")[0]
        if theirs != version:
            yield f"WARNING: the study was begun with {name} {theirs}, this worker has {version}"
