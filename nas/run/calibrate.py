"""`nas calibrate`: a few architectures are trained for long, and cheap estimates are compared with that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from nas.data.task import Task
from nas.errors import ConfigError, ExhaustedError, NoModelError, SpaceError, counted
from nas.evaluate.calibration import (
    FILE,
    MIN_ARCHITECTURES,
    Calibration,
    Estimate,
    Settings,
    choose,
    estimate,
    read_calibration,
)
from nas.evaluate.failure_summary import diagnosis
from nas.evaluate.multi_fidelity import Laddered, scaled_space, scaled_task
from nas.evaluate.proxies import DEFAULT, PROXIES, Scored, log_rank
from nas.evaluate.trained import Trained
from nas.files.atomic import read_json, write_json
from nas.files.folder import results_folder
from nas.results.run_record import CHECKPOINT
from nas.run.black_box import run_trials
from nas.run.config import make_config
from nas.run.job import Job
from nas.run.preparation import check_fit, name_of, prepare, refuse_others, with_names
from nas.run.run_folder import begun, clear_checkpoints, refuse_other_settings
from nas.run.supernet_phase import shared_weights
from nas.searchers.fidelity import Fidelity, Ladder
from nas.searchers.goals import Goals
from nas.searchers.scheduler import Listed
from nas.searchers.searcher import unseen
from nas.seeding import rng
from nas.show import draw
from nas.show.progress import Progress, telling
from nas.space.space import Space
from nas.study.workers import Evaluate
from nas.training.launch import refuse
from nas.types import Genotype, Objective, Trial


def compare_estimates(job: Job, settings: Settings) -> Calibration:
    """Trains the architectures for long, estimates them in every cheap way, and compares.

    Raises:
        NoModelError: when too few of them train, or all are equally accurate.
    """
    genotypes = _sample(job, settings.architectures)
    trials = _truth(job, genotypes, settings)
    truth = [[_value(t, job.problem.val) for t in trials if t.genotype == g] for g in genotypes]
    means = [_mean(values) for values in truth]
    if sum(map(math.isfinite, means)) < MIN_ARCHITECTURES:
        raise NoModelError(
            f"calibrate: fewer than {MIN_ARCHITECTURES} architectures could be trained:{diagnosis(trials)}"
        )
    found: list[Estimate | None] = []
    if settings.repeats > 1:
        others = [_mean(values[1:]) for values in truth]
        cost_s = _cost(trials) / settings.repeats
        name = f"{counted(settings.epochs, 'epoch')} again (ceiling)"
        found.append(estimate(name, "ceiling", [v[0] for v in truth], others, cost_s=cost_s))
    for fidelity in fidelities(job):
        found += _trained(job, genotypes, means, fidelity)
    found.append(_shared(job, genotypes, means))
    found += _proxies(job, genotypes, means)
    estimates = tuple(e for e in found if e is not None)
    if not estimates:
        raise NoModelError(
            f"calibrate: after {counted(settings.epochs, 'epoch')} all architectures are equally accurate; "
            "train for longer, or on more images"
        )
    chosen = choose(estimates, settings.threshold)
    return Calibration(
        job.config.space,
        job.config.task,
        job.task.fingerprint,
        len(genotypes),
        settings.epochs,
        settings.repeats,
        settings.threshold,
        estimates,
        None if chosen is None else chosen.name,
    )


def fidelities(job: Job) -> list[Fidelity]:
    """Cheaper ways to spend a trial: fewer epochs, images, channels, cells or pixels, where they apply."""
    full = job.plan.trial.epochs
    wanted = [Fidelity(1), Fidelity(full)]
    wanted += [Fidelity(full, images=0.25), Fidelity(full, image_size=0.5)]
    wanted += [Fidelity(full, width=0.5), Fidelity(full, cells=0.5)]
    return [fidelity for fidelity in dict.fromkeys(wanted) if _applies(job, fidelity)]


def _applies(job: Job, fidelity: Fidelity) -> bool:
    try:
        space, task = scaled_space(job.space, fidelity), scaled_task(job.search_task, fidelity)
        check_fit(space, task)
    except SpaceError as error:
        job.progress.note(f"{fidelity} is left out: {error}")
        return False
    cuts_space = fidelity.width < 1 or fidelity.cells < 1
    if cuts_space and space.settings == job.space.settings:
        job.progress.note(f"{fidelity} is left out: the space is as small as it gets")
        return False
    return True


def _sample(job: Job, count: int) -> list[Genotype]:
    """Different random architectures; all of them where the space has no more."""
    draws, drawn = rng(job.seed("calibrate"), "sample"), list[Trial]()
    for number in range(count):
        try:
            genotype = unseen(job.space, drawn, draws, propose=lambda: job.space.sample(draws))
        except ExhaustedError as error:
            if number < MIN_ARCHITECTURES:
                raise ConfigError(
                    f"calibrate: {error}; a calibration needs {MIN_ARCHITECTURES} architectures"
                ) from error
            job.progress.note(f"{error}: {number} are calibrated with")
            break
        drawn.append(Trial(number, genotype))
    return [trial.genotype for trial in drawn]


def _truth(job: Job, genotypes: Sequence[Genotype], settings: Settings) -> list[Trial]:
    """The long trainings, each architecture with every seed."""
    folder = job.folder / CHECKPOINT / "truth"
    measure = Trained(job.space, job.search_task, job.plan.trial, folder=folder, stop=job.stop)
    return _measure(job, "truth", measure, genotypes, epochs=settings.epochs, repeats=settings.repeats)


def _trained(
    job: Job, genotypes: Sequence[Genotype], truth: Sequence[float], fidelity: Fidelity
) -> list[Estimate | None]:
    """Two estimates from one short training: its validation accuracy and its training speed.

    The latter is TSE-E of Ru et al. 2021 with E = 1, the training loss of the last epoch, its sign turned.
    """
    name = str(fidelity)
    measure = Laddered(
        job.space,
        job.search_task,
        job.plan.trial,
        Ladder((fidelity,)),
        job.folder / CHECKPOINT / name,
        seed=job.seed(name),
        stop=job.stop,
    )
    trials = _measure(job, name, measure, genotypes, epochs=fidelity.epochs)
    cost_s = _cost(trials)
    accuracies = [_value(t, job.problem.val) for t in trials]
    speeds = [-_value(t, "train_loss") for t in trials]
    return [
        estimate(name, "trained", accuracies, truth, cost_s=cost_s),
        estimate(f"TSE-E, {name}", "speed", speeds, truth, cost_s=cost_s),
    ]


def _shared(job: Job, genotypes: Sequence[Genotype], truth: Sequence[float]) -> Estimate | None:
    """Weights of one supernet; its training is shared out among the architectures."""
    if any(not d.mixable for d in job.space.decisions):
        job.progress.note("shared weights are left out: the space has decisions that are no modules")
        return None
    measure, seconds = shared_weights(job)
    trials = _measure(job, "shared", measure, genotypes, epochs=0)
    cost_s = _cost(trials) + seconds / len(genotypes)
    return estimate(
        "shared weights", "shared", [_value(t, job.problem.val) for t in trials], truth, cost_s=cost_s
    )


def _proxies(job: Job, genotypes: Sequence[Genotype], truth: Sequence[float]) -> list[Estimate | None]:
    """Every zero-cost proxy, and the log-rank sum of the default ones."""
    found: list[Estimate | None] = []
    scores: dict[str, list[float]] = {}
    costs: dict[str, float] = {}
    for name in PROXIES:
        measure = Scored(job.space, job.search_task, [name]).evaluate
        trials = _measure(job, f"proxy {name}", measure, genotypes, epochs=0, objective=Objective(name))
        scores[name] = [_value(t, name) for t in trials]
        costs[name] = _cost(trials)
        found.append(estimate(name, "proxy", scores[name], truth, cost_s=costs[name]))
    complete = [i for i in range(len(genotypes)) if all(math.isfinite(scores[n][i]) for n in DEFAULT)]
    if complete:
        ranks = log_rank({name: [scores[name][i] for i in complete] for name in DEFAULT})
        cost_s = sum(costs[name] for name in DEFAULT)
        name = f"log-rank of {', '.join(DEFAULT)}"
        found.append(estimate(name, "proxy", list(ranks), [truth[i] for i in complete], cost_s=cost_s))
    return found


def _measure(
    job: Job,
    name: str,
    measure: Evaluate,
    genotypes: Sequence[Genotype],
    *,
    epochs: int,
    repeats: int = 1,
    objective: Objective | None = None,
) -> list[Trial]:
    """All architectures in a study of their own, which is where a resumed calibration goes on."""
    listed = Listed(tuple(genotypes), epochs, repeats)
    study = job.study(name, listed, goals=Goals((objective or job.problem.objective,)), announce=epochs > 0)
    run_trials(job, study, measure, len(genotypes) * repeats, what=name)
    return study.history


def _cost(trials: Sequence[Trial]) -> float:
    """Seconds for one architecture, over all its repeats."""
    return sum(t.cost_s for t in trials) / max(1, len({t.genotype for t in trials}))


def _value(trial: Trial, metric: str) -> float:
    return trial.metrics[metric] if trial.state == "done" else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


SETTINGS = "settings.json"
USED = (
    *("space", "task", "method", "evaluator", "preset", "seed", "device"),
    *("space_settings", "epochs", "trial", "supernet", "sharing", "search_images", "augment"),
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
    `shared`, `supernet` and `epochs` are those of the supernet. progress, stop: as of `nas.search`.

    Raises:
        NasError: when a setting, the space or the data cannot be used, or too few architectures train.
    """
    refuse("a calibration")
    settings = settings or Settings()
    names = {"space": name_of(space, Space, who="calibrate"), "task": name_of(task, Task, who="calibrate")}
    made = make_config(with_names(config, {**names, "method": "random"}))
    refuse_others(made, USED, what="a calibration")
    place = Path(out) if out is not None else results_folder("calibrate", made.space, made.task)
    with ExitStack() as stack:
        told = stack.enter_context(telling(progress))
        job = prepare(made, place, space=space, task=task, progress=told, stop=stop)
        job = stack.enter_context(begun(job))
        return _finished(job, settings) or _calibrated(job, settings)


def _finished(job: Job, settings: Settings) -> Calibration | None:
    """The calibration that the folder holds already, which must have the same settings."""
    path, now = job.folder / SETTINGS, asdict(settings)
    if not path.exists():
        write_json(path, now)
    if not isinstance(before := read_json(path), dict):
        raise ConfigError(f"{path} is no record of a calibration's settings; choose another --out folder")
    refuse_other_settings(job.folder, "a calibration", before, now)
    if not (job.folder / FILE).exists():
        return None
    job.progress.note(f"{job.folder} holds this calibration already, finished")
    clear_checkpoints(job.folder)
    return read_calibration(job.folder)


def _calibrated(job: Job, settings: Settings) -> Calibration:
    for note in job.notes:
        job.progress.note(note)
    if settings.epochs <= job.plan.trial.epochs:
        job.progress.note(
            f"WARNING: the truth has {counted(settings.epochs, 'epoch')}, a trial {job.plan.trial.epochs}: a "
            "truth that is no longer says little; raise --epochs"
        )
    found = compare_estimates(job, settings)
    title = f"What can be trusted: {job.space.name} on {job.task.name}"
    figure = draw.draw_rank_correlation(
        found.estimates, title=title, subtitle=found.lines()[0], threshold=found.threshold
    )
    draw.save(figure, job.folder / "calibration.svg", job.folder / "calibration.png")
    write_json(job.folder / FILE, found.to_dict())  # the last file: with it the calibration is finished
    clear_checkpoints(job.folder)
    return found
