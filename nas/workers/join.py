"""A worker that joins a study: it makes the same job of what the study says, and does trials of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from optuna.storages import BaseStorage

from nas import __version__, devices
from nas.errors import ConfigError, SpaceError
from nas.files.folders import prepare_folder
from nas.files.temporary import temporary_folder
from nas.job.config import Config, make_config
from nas.job.job import Job
from nas.job.preparation import prepare
from nas.job.run_folder import describe_run, refuse_another_job
from nas.job.trial_search import RECORD, trial_search
from nas.job.trial_setup import trial_line
from nas.progress import Progress
from nas.registry import is_plugin
from nas.results.run_record import SEARCH, read_run
from nas.storage.address import Address, find_address
from nas.storage.run import RunStorage, open_storage, run_storage
from nas.workers.identity import Identity


@dataclass(frozen=True)
class Home:
    """Where a study lives.

    address: of the database, None for a journal. folder: that of the run, for checkpoints that all workers
      share; None where it cannot be reached.
    """

    storage: BaseStorage
    address: Address | None = None
    folder: Path | None = None


def home_in(folder: Path) -> Home:
    """The study of a run's folder.

    Raises:
        ConfigError: when there is none, or its database cannot be used or is not given in `NAS_STORAGE`.
    """
    record, folder = read_run(folder), folder.resolve()
    known = record["config"].get("storage")
    address = find_address(Address(known), recorded=True) if known else None
    run = str(record.get("run", ""))
    return Home(run_storage(folder, address, run=run), address, folder)


def home_at(where: str, run: str | None) -> Home:
    """The study of a run in a database, or in the journal at a path.

    where: a URL whose password is masked, as others can read it, has it in `NAS_STORAGE`.
    run: its name in the database, `FOLDER-1a2b3c4d`, as `run.json` has it.
    """
    if "://" not in where:
        if run is not None:
            raise ConfigError(f"--study is the name of a run in a database, but {where} is a file; remove it")
        journal = Path(where)
        if not journal.is_file():
            raise ConfigError(f"there is no journal {journal} (looked for {journal.resolve()})")
        return Home(RunStorage(open_storage(journal)))
    if run is None:
        raise ConfigError(
            'a database holds many runs; name yours with --study, by its name under "run" in run.json'
        )
    address = cast(Address, find_address(Address(where)))
    # Results that wait for the database to come back have no folder of the run to wait in.
    return Home(RunStorage(open_storage(address), run=run.removesuffix(f"/{SEARCH}")), address)


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
    config, ignoring = _own_config(record, home.address, space=space, task=task, device=device)
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
        max_failures=job.config.max_failures,
    )


def _record(home: Home) -> Mapping[str, Any]:
    """What the coordinator left with the study."""
    studies = {study.study_name: study for study in home.storage.get_all_studies()}
    record = studies[SEARCH].user_attrs.get(RECORD) if SEARCH in studies else None
    if not isinstance(record, Mapping):
        raise ConfigError(
            "there are no trials to join here: nas search has not begun them yet, or its method has none that"
            " several workers could share, or the run has another name"
        )
    return record


def _own_config(
    record: Mapping[str, Any],
    address: Address | None,
    *,
    space: str | None,
    task: str | None,
    device: str | None,
) -> tuple[Config, list[str]]:
    """The study's configuration on this machine, and the settings that may differ from the study's."""
    config = make_config(record["config"], where="the study's settings")
    changes: dict[str, object] = {"storage": address}
    ignoring = ["config.storage"]
    if device is not None:
        changes["device"] = device
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
    with temporary_folder() as folder:
        yield folder


def _differing_versions(record: Mapping[str, Any]) -> Iterator[str]:
    own = {"nas-engine": __version__, "torch": torch.__version__.partition("+")[0]}
    for name, version in own.items():
        theirs = str(record["environment"].get(name)).partition("+")[0]
        if theirs != version:
            yield f"WARNING: the study was begun with {name} {theirs}, this worker has {version}"
