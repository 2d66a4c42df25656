"""`nas calibrate`: a few architectures are trained for long, and cheap estimates are compared with that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from nas import draw
from nas.data.task import Task
from nas.errors import ConfigError
from nas.evaluate.calibration import FILE, Calibration, Settings, read_calibration
from nas.files.atomic import read_json, write_json
from nas.files.folder_lock import FolderLock
from nas.files.folders import results_folder
from nas.run.arguments import name_of, refuse_others, with_names
from nas.run.cheap_estimates import compare_estimates
from nas.run.config import make_config
from nas.run.preparation import prepare
from nas.run.run_folder import begin, clear_checkpoints, open_folder, refuse_other_settings
from nas.show.console import telling
from nas.show.progress import Progress
from nas.space.space import Space
from nas.text import counted
from nas.training.launch import refuse

SETTINGS = "settings.json"
USED = (
    *("space", "task", "method", "evaluator", "preset", "seed", "device"),
    *("space_settings", "epochs", "trial", "shared", "sharing", "search_images", "augment"),
    *("storage", "storage_patience", "execution"),
)
"""The settings of a job that a calibration reads."""


def calibrate(
    space: str | Space,
    task: str | Task,
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    config: Mapping[str, object] | None = None,
    progress: Progress | bool | None = None,
    stop: Callable[[], bool] | None = None,
) -> Calibration:
    """Measures how well every fidelity, shared weights and every proxy rank architectures on this task.

    Called again with the same folder and settings, it resumes. config: settings of `nas.Config` in `USED`;
    `trial` is the recipe, `epochs` those of a trial, from which the fidelities are derived; with evaluator
    `shared`, `shared` and `epochs` are those of the supernet. progress, stop: as of `nas.search`.

    Raises:
        NasError: when a setting, the space or the data cannot be used, or too few architectures train.
    """
    refuse("a calibration")
    settings = settings or Settings()
    names = {
        "space": name_of("space", space, who="calibrate"),
        "task": name_of("task", task, who="calibrate"),
        "method": "random",
    }
    made = make_config(with_names(config, names))
    refuse_others(made, USED, what="a calibration")
    place = Path(out) if out is not None else results_folder("calibrate", made.space, made.task)
    with telling(progress) as told:
        job, notes = prepare(
            made,
            place,
            space=space if isinstance(space, Space) else None,
            task=task if isinstance(task, Task) else None,
            progress=told,
            stop=stop,
        )
        if settings.epochs <= job.plan.trial.epochs:
            notes.append(
                f"WARNING: the truth has {counted(settings.epochs, 'epoch')}, a trial "
                f"{job.plan.trial.epochs}: a truth that is no longer says little; raise --epochs"
            )
        folder = open_folder(place)
        job = dataclasses.replace(job, folder=folder)
        with FolderLock(folder):
            begin(folder, job.config, job.plan, space=job.space, task=job.task, force=False)
            _keep(folder / SETTINGS, settings)
            if (folder / FILE).exists():
                job.progress.note(f"{folder} holds this calibration already, finished")
                clear_checkpoints(folder)
                return Calibration.from_dict(read_calibration(folder))
            for note in notes:
                job.progress.note(note)
            found = compare_estimates(job, settings)
            _draw(found, folder, title=f"What can be trusted: {job.space.name} on {job.task.name}")
            write_json(folder / FILE, found.to_dict())  # the last file: with it the calibration is finished
            clear_checkpoints(folder)
        return found


def _draw(found: Calibration, folder: Path, *, title: str) -> None:
    rows = [draw.Trust(e.name, e.tau, e.tau_low, e.tau_high, e.cost_s, e.group) for e in found.estimates]
    figure = draw.draw_trust(rows, title=title, subtitle=found.lines()[0], threshold=found.threshold)
    draw.save(figure, folder / "calibration.svg", folder / "calibration.png")


def _keep(path: Path, settings: Settings) -> None:
    """Writes the settings down, or checks that a resumed calibration has the same."""
    now = asdict(settings)
    if not path.exists():
        write_json(path, now)
        return
    before = read_json(path)
    if not isinstance(before, dict):
        raise ConfigError(f"{path} is no record of a calibration's settings; choose another --out folder")
    refuse_other_settings(path.parent, "a calibration", before, now)
