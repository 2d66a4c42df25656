"""The whole job: search, train the best again with fresh seeds, train the winner in full, write the result.

Every phase can be killed at any moment; the same call goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
import torch

from nas import devices, failures
from nas.audit import AUDIT_FILES, audit_task, write_audit
from nas.baselines import RANDOM, Baselines, run_baselines
from nas.budget import EXPORT_S, Shares
from nas.bundle.at_end import bundle_at_end, is_bundled
from nas.calibration import read_calibration
from nas.clock import Clock
from nas.config import Config, make_config, with_names
from nas.distributed import joined
from nas.errors import ConfigError, NasError, SpaceError, TrialError
from nas.files import FolderLock, write_json
from nas.following import follow
from nas.gradient_search import write_health
from nas.graph import cell_graphs
from nas.guard import user_errors
from nas.inputs import Inputs
from nas.job import Job
from nas.oneshot.fused.execution import resolve
from nas.oneshot.method import Method
from nas.pareto import hypervolume
from nas.phases import Found, find
from nas.plan import Plan, make_plan
from nas.preview import Preview, comparison
from nas.progress import Progress, Silent
from nas.registry import is_plugin, load
from nas.rerank import SEARCH, Verdict, rerank
from nas.result import Result, baselines_of, is_finished, load_result, rounded, to_cpu, wilson, write_result
from nas.resumable import Stopped
from nas.retrain_run import (
    BEGIN,
    RETRAIN,
    check_trial,
    final_recipe,
    final_space,
    follow_to,
    offer,
    team_notes,
    train_final,
)
from nas.run_folder import begin, clear_checkpoints, open_folder
from nas.seeding import rng
from nas.space import Space
from nas.storage.address import find_address
from nas.storage.run import check_storage, keep_history
from nas.suspects import without
from nas.task import Task, load_task
from nas.team import ALONE, Team
from nas.timing import Ahead, Tell, estimated_s, last_training, look_ahead, measured, within
from nas.tracking.choice import check_trackers, open_tracking
from nas.tracking.tracker import Tracker
from nas.trial_setup import check_search, warm_start

PICTURES_S = 2.0
"""Pictures are left out where less of a budget is left."""
OWN = "own:"
"""What stands before the name of a method that was given in Python, in a run's record."""


def search(
    space: str | Space = "darts",
    task: str | Task = "digits",
    method: str | Method = "is-darts",
    *,
    out: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
    force: bool = False,
    progress: Progress | None = None,
    trackers: Sequence[Tracker] = (),
    stop: Callable[[], bool] | None = None,
) -> Result:
    """Finds an architecture, trains it, and leaves everything in a folder; called again, it resumes.

    Under torchrun all ranks train supernets and the last network together, see docs/distributed.md.

    space: a name, `module:function`, `file.py:function`, or a `Space`.
    task: a name that `load_task` knows, or a `Task`.
    method: one of `nas.config.METHODS`, e.g. `guided`, `nsga2`, `drnas`, `optuna:` and a sampler's name, or a
      `Method` put together in Python.
    out: the run's folder, by default `results/SPACE-TASK-METHOD`.
    settings: any other setting of `nas.Config`, e.g. `{"epochs": 2, "seed": 1, "retrain": {"lr": 0.1}}`.
    force: go on although the data are no longer those that the run began with.
    trackers: told of every trial and epoch, beside those that `tensorboard` and `mlflow` in the settings ask
      for; see `nas.tracking.tracker.Tracker`.
    stop: asked often; when true, the state is saved and `Stopped` raised.

    Raises:
        NasError: when a setting, the space or the data cannot be used, or no valid model was found.
    """
    names = {
        "space": space if isinstance(space, str) else space.name,
        "task": task if isinstance(task, str) else task.name,
        "method": method if isinstance(method, str) else f"{OWN}{method.name}",
    }
    config = make_config(with_names(settings, names))
    return run(
        config,
        out=out,
        space=space if isinstance(space, Space) else None,
        task=task if isinstance(task, Task) else None,
        method=method if isinstance(method, Method) else None,
        force=force,
        progress=progress,
        trackers=trackers,
        stop=stop,
    )


def run(
    config: Config,
    *,
    out: str | Path | None = None,
    space: Space | None = None,
    task: Task | None = None,
    method: Method | None = None,
    force: bool = False,
    progress: Progress | None = None,
    trackers: Sequence[Tracker] = (),
    stop: Callable[[], bool] | None = None,
    clock: Clock | None = None,
    tell: Tell | None = None,
) -> Result:
    """Runs or resumes the job of a configuration; space, task and method, if given, come before its names.

    clock: counts its time and holds its budget; begun now with that of the configuration unless given.
    tell: is shown what the job will cost before anything is trained, and says whether to go on.
    """
    clock = clock or Clock(config.budget)
    place = Path(out) if out is not None else default_folder(config)
    if (config.workers != 1 or config.trial_timeout is not None) and (space, task) != (None, None):
        raise ConfigError(
            "workers or trial_timeout are set, which need other processes, but these cannot be given a space "
            "or a task that was made in Python; give their names"
        )
    with joined(limit_s=config.rank_timeout, stop=stop) as team:
        if team.leads:
            check_trackers(config)
        else:
            follow_to(place, team)
        job, notes = prepare(
            config,
            place,
            space=space,
            task=task,
            method=method,
            progress=progress if team.leads else None,
            stop=stop,
            team=team,
            clock=clock,
        )
        if not team.leads:
            with devices.repeatable(enabled=config.deterministic):
                follow(job)
            return load_result(place, space=job.final)
        result = _lead(job, notes, trackers, force=force, tell=tell)
    # Without the other ranks, which would wait in vain.
    if config.export and not is_bundled(result.folder):
        if clock.left_s < EXPORT_S:
            job.progress.note(f"budget: no time for a bundle; nas export {result.folder} writes it")
        else:
            bundle_at_end(result, job.task, job.progress)
    return result


def look(config: Config, *, progress: Progress | None = None) -> Preview:
    """What the job of a configuration would cost on its device; nothing is written."""
    job, _ = prepare(config, default_folder(config), progress=progress, clock=Clock(config.budget))
    return measured(job)


def _lead(
    job: Job, notes: Sequence[str], trackers: Sequence[Tracker], *, force: bool, tell: Tell | None
) -> Result:
    folder = open_folder(job.folder)
    job = dataclasses.replace(job, folder=folder)
    with FolderLock(folder, otherwise=_how_to_join(job)):
        record = begin(
            folder, job.config, job.plan, space=job.space, task=job.task, ranks=job.team.size, force=force
        )
        job.team.call(BEGIN)
        note = job.progress.note
        with open_tracking(job.config, folder, record, own=trackers, note=note) as tracking:
            result = _result(dataclasses.replace(job, tracking=tracking), notes, tell)
            tracking.finish(result.metrics, folder)
    return result


def _result(job: Job, notes: Sequence[str], tell: Tell | None) -> Result:
    if is_finished(job.folder):
        job.progress.note(f"{job.folder} holds this run already, finished")
        clear_checkpoints(job.folder)
        return load_result(job.folder, space=job.final)
    for note in [*notes, *_audited(job)]:
        job.progress.note(note)
    if tell is not None or job.clock.budget_s is not None:
        job.clock.open(job.folder)
    with devices.repeatable(enabled=job.config.deterministic):
        try:
            ahead = look_ahead(job, tell)
            result = _run(job, ahead)
        except (NasError, Stopped):
            job.clock.save()
            raise
    if ahead is not None:
        job.progress.note(comparison(estimated_s(job, ahead), job.clock.elapsed_s))
    return result


def _audited(job: Job) -> list[str]:
    """Audits the task where the job wants that, leaves the findings in its folder, and tells them."""
    if not job.config.audit or (job.folder / AUDIT_FILES[0]).is_file():
        return []
    job.progress.note("auditing images and labels")
    found = audit_task(job.task, seed=job.config.seed)
    paths = write_audit(found, job.task, job.folder)
    return [*found.summary(), f"suspect images: {paths[1]}"]


def _how_to_join(job: Job) -> str:
    shared = job.plan.searcher is not None and not job.config.shares_weights
    return f"; to help it with its trials: nas worker {job.folder}" if shared else ""


def prepare(
    config: Config,
    folder: Path,
    *,
    space: Space | None = None,
    task: Task | None = None,
    method: Method | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
    clock: Clock | None = None,
) -> tuple[Job, list[str]]:
    """All that a job needs, checked before anything is written, and what the user should know of it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = config.model_copy(update={"storage": find_address(config.storage)})
    if config.storage is not None and not is_finished(folder):
        check_storage(config.storage)
    plan = make_plan(config, method)
    if space is not None or is_plugin(config.space):
        # A preset knows the sizes of the engine's own spaces; anybody else's are the author's.
        plan = dataclasses.replace(plan, size={}, final_size={})
    if team.size > 1:
        _refuse_trials(config)
        _refuse_budget(config)
    device = devices.resolve(config.device, local=team.local)
    for recipe in (plan.trial, plan.search.weights, plan.shared, plan.final):
        resolve(recipe.execution, device)
    task = task or load_task(config.task, seed=config.seed)
    task = (task if config.exclude is None else without(task, config.exclude)).to(device)
    if space is None:
        space = load(config.space, offer(task) | dict(plan.size), **config.space_settings)
    elif config.space_settings:
        raise ConfigError(
            "space_settings are given, but the space is made already; make it with these settings"
        )
    # What the last phase would refuse is refused before the first.
    final = final_space(config, plan, space, task)
    recipe, notes = final_recipe(config, plan, final, task)
    check_trial(plan, space, task)
    check_fit(space, task)
    search_task = task.reduced(plan.search_images) if plan.search_images else task
    job = Job(
        config,
        plan,
        space,
        task,
        search_task,
        final,
        recipe,
        folder,
        progress or Silent(),
        stop or (lambda: False),
        team,
        clock or Clock(),
    )
    check_search(job)
    about = f"seed {config.seed}, device {device} ({devices.describe(device)})"
    batch = plan.search.weights.batch if config.is_differentiable else plan.shared.batch
    notes = [*notes, *team_notes(team, batch, recipe.batch), *_trust(config, plan, task)]
    return job, [about, *task.notes, *notes]


def _refuse_trials(config: Config) -> None:
    """Trials that are trained one after the other gain nothing from many ranks."""
    if not config.is_differentiable and not config.shares_weights:
        raise ConfigError(
            f"method {config.method!r} trains its trials one by one, which several ranks cannot share; start "
            "it without torchrun and with --workers (its winner can be trained over all ranks by nas "
            "retrain), or search by gradients or with evaluator shared"
        )


def _refuse_budget(config: Config) -> None:
    if config.budget is not None:
        raise ConfigError(
            "budget is set, but several ranks would have to agree on the time in every step; start without "
            "torchrun, or bound the work by epochs and retrain.epochs"
        )


def _trust(config: Config, plan: Plan, task: Task) -> list[str]:
    """What a calibration means for the trials."""
    if config.fidelity != "auto":
        return []
    record = read_calibration(Path(str(config.calibration)))
    changed = record.get("fingerprint") != task.fingerprint
    notes = ["WARNING: the calibration was made on other images of this task"] if changed else []
    if record["chosen"] is not None:
        return [*notes, f"fidelity of the trials, by calibration: {plan.ladder}"]
    return [*notes, f"WARNING: the calibration trusts no cheap fidelity; trials take {plan.ladder}"]


def check_fit(space: Space, task: Task, *, samples: int = 3) -> None:
    """Raises SpaceError when none of a few random architectures turns the task's images into its classes."""
    draw, wanted = rng(0, "fit"), (2, task.num_classes)
    for _ in range(samples):
        try:
            with user_errors():
                network = space.network(space.sample(draw), meta=True).eval()
                logits = network(torch.zeros(2, *task.image_shape, device="meta"))
        except (SpaceError, TrialError) as error:
            reason = str(error)
            continue
        if tuple(logits.shape) == wanted:
            return
        reason = f"a batch of 2 gives {tuple(logits.shape)}, wanted {wanted}"
    raise SpaceError(
        f"space {space.name!r} does not fit task {task.name!r}, images {task.image_shape} of "
        f"{task.num_classes} classes: {reason}"
    )


def default_folder(config: Config) -> Path:
    """results/SPACE-TASK-METHOD, made of harmless characters."""
    parts = [config.space, config.task, config.method, *(["shared"] if config.evaluator == "shared" else [])]
    names = ("".join(c if c.isalnum() or c in "._" else "_" for c in Path(part).name) for part in parts)
    return Path("results") / "-".join(names)


def _run(job: Job, ahead: Ahead | None) -> Result:
    size = job.space.size
    job.progress.note(f"space {job.space.name}: {len(job.space.decisions)} decisions, {size} architectures")
    if size.exact and size.count == 1:
        job.progress.note("the space holds a single architecture, so there is nothing to search")
    planned, shares = job, None
    if ahead is not None and job.clock.budget_s is not None:
        job, shares = within(job, ahead)
    found = find(job, until_s=None if shares is None else shares.search_s)
    baselines, verdict = _compared(job, found, shares)
    _tell(job, verdict)
    best, last = verdict.best, last_training(planned, verdict.best, ahead)
    network, trained = train_final(
        job.final,
        best,
        job.task,
        last.recipe,
        seed=job.seed(RETRAIN),
        folder=last.folder,
        progress=job.progress,
        stop=job.stop,
        split=last.split,
        left_s=last.left_s,
        team=job.team,
        tracking=job.tracking,
    )
    searched = [t.metrics["val_acc"] for t in found.history if t.state == "done" and t.genotype == best]
    metrics = {
        **trained,
        **({"search_val_acc": searched[-1]} if searched else {}),
        **verdict.metrics,
        **_volumes(job, found, baselines),
        "search_seconds": found.seconds,
        "trials": len(found.history),
        **_failures(job, found),
        **_times(job, ahead),
    }
    graphs = cell_graphs(job.final, best)
    result = Result(
        job.final,
        best,
        graphs,
        to_cpu(network),
        rounded(metrics),
        found.history,
        job.folder,
        Inputs.of(job.task),
        baselines_of(baselines.history, job.plan.goals, method=job.config.method),
        job.plan.goals,
    )
    if baselines.choices:
        compared = {
            "found_by": verdict.found_by,
            "choices": {name: job.space.choices(g) for name, g in baselines.choices.items()},
            "statements": list(verdict.statements),
        }
        write_json(job.folder / "baselines.json", compared)
    title = f"{job.space.name} on {job.task.name}, method {job.config.method}"
    if job.config.storage is not None:
        keep_history(job.storage, job.folder)
    pictures = job.config.pictures and job.clock.left_s > PICTURES_S
    job.clock.save()  # the manifest will hold it
    if job.config.pictures and not pictures:
        job.progress.note("budget: no time for pictures; nas draw makes them")
    if found.epochs:
        write_health(job.folder, found.epochs, title=f"Health of the search: {title}", pictures=pictures)
    write_result(
        result, image_shape=job.task.image_shape, title=title, alphas=found.alphas, pictures=pictures
    )
    clear_checkpoints(job.folder)
    return result


def _compared(job: Job, found: Found, shares: Shares | None) -> tuple[Baselines, Verdict]:
    """The baselines and the fresh trainings, as far as there is time for them."""
    size = job.space.size
    compares = job.plan.baselines and not (size.exact and size.count == 1) and bool(found.history)
    own = job.config.method == "random" and job.plan.scheduler == "fixed"
    if shares is not None and shares.rerank_s is None:
        return Baselines((), {}), Verdict(found.candidates[0], SEARCH, {})
    if shares is not None and shares.baselines_s is None and not own:
        compares = False
    until_s = None if shares is None else shares.baselines_s
    baselines = run_baselines(job, found, until_s=until_s) if compares else Baselines((), {})
    verdict = rerank(
        job,
        found.candidates,
        baselines.choices,
        start=warm_start(job, found.measure),
        until_s=None if shares is None else shares.rerank_s,
    )
    return baselines, verdict


def _times(job: Job, ahead: Ahead | None) -> dict[str, float]:
    """What was estimated, and what the job has taken up to the writing of its result."""
    if ahead is None:
        return {}
    return {"estimated_seconds": estimated_s(job, ahead), "job_seconds": job.clock.elapsed_s}


def _failures(job: Job, found: Found) -> dict[str, float]:
    """How many trials failed, for each reason too, and how many learned nothing."""
    counts = failures.count(found.history)
    metrics: dict[str, float] = {
        "failed_trials": sum(counts.values()),
        **{f"failed_{k}": v for k, v in counts.items()},
    }
    if job.plan.searcher is None:
        return metrics
    level = _chance(job.search_task)
    idle = failures.at_chance(found.history, level)
    if idle:
        job.progress.note(
            f"WARNING: {idle} of {len(found.history)} trials are no better than guessing (validation "
            f"accuracy at most {level:.3f}): they diverged, or learned too little; lower trial.lr or raise "
            "the epochs"
        )
    return {**metrics, "chance_trials": idle}


def _chance(task: Task) -> float:
    """The validation accuracy that guessing the commonest class may reach: the end of its 95 % interval."""
    share = float(task.val.y.bincount().max()) / len(task.val)
    return wilson(share, len(task.val))[1]


def _tell(job: Job, verdict: Verdict) -> None:
    for statement in verdict.statements:
        job.progress.note(statement)
    if verdict.found_by != SEARCH:
        job.progress.note(f"the architecture of baseline {verdict.found_by!r} did better and is taken")


def _volumes(job: Job, found: Found, baselines: Baselines) -> dict[str, float]:
    """With several objectives, the hypervolumes of search and random search above their common worst."""
    goals = job.plan.goals
    kept = {
        name: [t for t in history if t.state == "done" and goals.violation(t.metrics) == 0]
        for name, history in (("", found.history), (f"{RANDOM}_", baselines.history))
    }
    if len(goals.objectives) == 1 or not kept[""]:
        return {}
    scores = {name: goals.table(trials)[0] for name, trials in kept.items() if trials}
    worst = np.min([table.min(0) for table in scores.values()], axis=0)
    best = np.max([table.max(0) for table in scores.values()], axis=0)
    scale = np.where(best > worst, best - worst, 1.0)
    return {
        f"{name}hypervolume": hypervolume((table - worst) / scale, np.full(len(worst), -0.05))
        for name, table in scores.items()
    }
