"""A run's folder: what was asked and resolved, and the refusal to mix two different runs in one place."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.errors import ConfigError, DataError, NasError, SpaceError, Stopped, shown
from nas.export.bundle import bundle_at_end, is_bundled
from nas.files.atomic import TEMPORARY, remove_unfinished, write_json, write_text, write_toml
from nas.files.folder import LOCK, MANIFEST, check_contents, check_name, folder_lock, prepare_folder
from nas.results.result import Result, is_finished, load_result
from nas.results.run_record import CHECKPOINT, FORMAT, environment, read_run
from nas.run.config import Config
from nas.run.job import BEGIN, Job
from nas.show.tracking import check_trackers, open_tracking
from nas.show.tracking.tracker import Tracker
from nas.space.loading import is_plugin, source_hash
from nas.space.space import Space
from nas.study.storage import open_storage

FREE = (
    *("config.device", "config.budget", "config.storage_patience", "config.max_failures"),
    *("config.workers", "config.executor", "config.trial_timeout", "config.rank_timeout"),
    *("config.export", "config.pictures"),
    *("config.tensorboard", "config.mlflow"),
    "config.audit",
)
"""Settings that may differ when a run is resumed."""
MOST_CHANGES = 20
"""Differences that are listed."""

EXPORT_S = 30.0
"""Seconds that a bundle takes at most."""


@contextmanager
def begun(job: Job, trackers: Sequence[Tracker] = (), *, force: bool = False) -> Iterator[Job]:
    """The job in its own folder: locked, with its record written, and its trackers told.

    Where it fails or is stopped, its clock is written down.
    """
    config = job.config
    check_trackers(config.tensorboard, config.mlflow)
    if config.storage is not None and not is_finished(job.folder):
        open_storage(config.storage)  # one that cannot be used is refused before a folder is begun
    folder = open_folder(job.folder)
    with folder_lock(folder):
        record = begin(replace(job, folder=folder), force=force)
        job.team.call(BEGIN)
        with open_tracking(
            str(record.get("run", folder.name)),
            folder,
            _settings(config),
            tensorboard=config.tensorboard,
            mlflow=config.mlflow,
            own=trackers,
            note=job.progress.note,
        ) as tracking:
            try:
                yield replace(job, folder=folder, tracking=tracking, force=force)
            except (NasError, Stopped):
                job.clock.save()
                raise


def _settings(config: Config) -> dict[str, str]:
    """What differs from the defaults, and the names of what is searched, as text."""
    named = ("space", "task", "method", "preset", "seed")
    values = {**{name: getattr(config, name) for name in named}, **config.model_dump(exclude_defaults=True)}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def finished(job: Job) -> Result | None:
    """The result that the folder holds already; None where there is work, whose clock begins."""
    if is_finished(job.folder):
        job.progress.note(f"{job.folder} holds this run already, finished")
        clear_checkpoints(job.folder)
        # Its own record knows the size of its network, which a budget may have chosen.
        named = job.config.space if is_plugin(job.config.space) else None
        return load_result(job.folder, space=named if job.final.origin else job.final, problem=job.problem)
    job.clock.open(job.folder)
    for note in job.notes:
        job.progress.note(note)
    return None


def export(job: Job, result: Result) -> None:
    """Writes the bundle, where it is wanted and there is time for it."""
    if not job.config.export or is_bundled(result.folder):
        return
    if job.clock.left_s < EXPORT_S:
        job.progress.note(f"budget: no time for a bundle; nas export {result.folder} writes it")
    else:
        bundle_at_end(result, job.task, job.progress)


def open_folder(out: str | Path) -> Path:
    """The folder of a new run or of one to resume.

    Raises:
        ConfigError: when its name cannot be a run's, it cannot be written, or it holds other files.
    """
    name = Path(out).name if Path(out).name not in ("", "..") else Path(out).resolve().name
    try:
        check_name(name, "run")
    except ConfigError as error:
        raise ConfigError(f"{error}; choose another --out folder") from error
    folder = prepare_folder(Path(out))
    foreign = [p.name for p in folder.iterdir() if p.name != LOCK and not p.name.startswith(TEMPORARY)]
    if foreign and not (folder / "run.json").is_file():
        raise ConfigError(
            f"{folder} is not empty ({sorted(foreign)[0]}) and holds no run; choose another --out folder"
        )
    check_contents(folder)
    return folder


def begin(job: Job, *, force: bool) -> dict[str, Any]:
    """Writes down what this run is, or checks that the folder's run is the same one; returns its record.

    force: go on although the data changed.

    Raises:
        ConfigError: with a line for every setting that differs, or for a folder of a newer version.
        DataError: when the data are no longer those that the run began with.
    """
    folder, now = job.folder, describe_run(job)
    remove_unfinished(folder)
    if not (folder / "run.json").exists():
        # The record comes first: a folder with a record is a run, whatever else is still missing.
        write_json(folder / "run.json", now)
    record = read_run(folder)
    kinds = ["a search" if run["architecture"] is None else "a retraining" for run in (record, now)]
    if kinds[0] != kinds[1]:
        raise ConfigError(f"{folder} holds {kinds[0]}, and this is {kinds[1]}; choose another --out folder")
    # The plan is compared too: a preset may mean something else in another version.
    asked = ("config", "architecture", "plan")
    refuse_other_settings(folder, "a run", {k: record[k] for k in asked}, {k: now[k] for k in asked})
    if record["task"]["fingerprint"] != job.task.fingerprint:
        record = _with_new_data(folder, record, now, force=force)
    refuse_other_settings(folder, "a run", {"space": record["space"]}, {"space": now["space"]})
    if not (folder / "config.toml").exists():
        write_text(folder / "config.toml", write_toml(job.config.model_dump()))
    return record


def refuse_other_settings(
    folder: Path, what: str, before: Mapping[str, object], now: Mapping[str, object]
) -> None:
    """Raises ConfigError with a line for every setting that differs from that of what a folder holds.

    what: it holds, in words.
    """
    old, new = _flat(before, ""), _flat(now, "")
    changes = [
        f"  {name.removeprefix('config.')}: {shown(old.get(name))} in the folder, {shown(new.get(name))} now"
        for name in sorted({*old, *new} - set(FREE))
        if old.get(name) != new.get(name)
    ]
    if changes:
        raise ConfigError(
            f"{folder} holds {what} with other settings:\n"
            + "\n".join(changes[:MOST_CHANGES])
            + "\nrepeat its command to resume it, or choose another --out folder"
        )


def _flat(value: object, name: str) -> dict[str, object]:
    """The leaves of nested tables by dotted name, tuples as the lists that JSON makes of them."""
    if not isinstance(value, Mapping):
        return {name: list(value) if isinstance(value, tuple) else value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}".lstrip(".")).items()}


def _with_new_data(
    folder: Path, record: dict[str, Any], now: Mapping[str, Any], *, force: bool
) -> dict[str, Any]:
    """The record with the data of now; what was in training on the old data starts again."""
    before, after = record["task"]["fingerprint"], now["task"]["fingerprint"]
    if not force:
        raise DataError(
            f"task {now['task']['name']!r} changed since {folder} was begun: its fingerprint is "
            f"{after[:12]}, not {before[:12]}; restore the data, choose another --out folder, or use --force"
        )
    if not (folder / MANIFEST).exists():
        record = {**record, "task": now["task"]}
        clear_checkpoints(folder)
        write_json(folder / "run.json", record)
    return record


def clear_checkpoints(folder: Path) -> None:
    """Removes what only an unfinished run needs."""
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)


def describe_run(job: Job) -> dict[str, Any]:
    """What `run.json` says of a run."""
    space, task = job.space, job.task
    return {
        "format": FORMAT,
        # The name of its studies in a database; folders elsewhere may be called the same.
        "run": f"{job.folder.name}-{secrets.token_hex(4)}",
        "config": job.config.model_dump(),
        "architecture": None if job.genotype is None else list(job.genotype),
        "plan": job.plan.to_dict(),
        "space": {
            "name": space.name,
            "origin": space.origin,
            "settings": _plain_settings(space),
            "file_sha256": source_hash(space.origin),
            "decisions": len(space.decisions),
            "size": str(space.size),
        },
        "task": {
            "name": task.name,
            "fingerprint": task.fingerprint,
            "problem": task.problem.name,
            "metric": task.problem.metric,
            "words": task.problem.words,
            "is_share": task.problem.is_share,
            "classes": list(task.classes),
            "mean": task.mean.tolist(),
            "std": task.std.tolist(),
            "image_shape": list(task.image_shape),
            "pixels": str(task.train.x.dtype).removeprefix("torch."),
            "images": {"train": len(task.train), "val": len(task.val), "test": len(task.test)},
            "notes": list(task.notes),
            "excluded": dict(task.excluded),
        },
        # Another number of ranks may go on, so it is not compared.
        "environment": {**environment(job.device), "ranks": job.team.size},
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _plain_settings(space: Space) -> object:
    """The space's settings as JSON brings them back."""
    try:
        return json.loads(json.dumps(dict(space.settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SpaceError(
            f"space {space.name!r}: its settings are {dict(space.settings)}, but a run can write down only "
            f"text, finite numbers, true, false and lists of them ({error}); choose by name instead"
        ) from error
