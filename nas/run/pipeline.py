"""A job from top to bottom: data, cost preview, search, comparison with baselines, retraining, result.

Every phase can be killed at any moment; the same call goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import devices
from nas.audit import AUDIT_FILES, audit_task, write_audit
from nas.data.preprocessing import Inputs
from nas.data.task import Task
from nas.errors import counted
from nas.evaluate import failure_summary
from nas.evaluate.significance import chance, rounded
from nas.files.atomic import write_json
from nas.results.result import Result, read_architecture, to_cpu
from nas.results.run_record import DEFAULT, RETRAIN, SEARCH
from nas.run.black_box import check_search, search_by_trials
from nas.run.budget import BASELINES, FRESH, BudgetPlan, Preview, Tell, plan_budget, preview, typical
from nas.run.comparison import Baselines, Verdict, random_search, rerank, volumes
from nas.run.config import Config, make_config
from nas.run.final_network import default_of
from nas.run.job import Clock, Job, SearchOutcome
from nas.run.preparation import (
    default_folder,
    follow,
    follow_to,
    name_of,
    prepare,
    retraining_config,
    with_names,
)
from nas.run.result_files import write_result
from nas.run.retrain import help_to_retrain, last_training, train_final
from nas.run.run_folder import begun, clear_checkpoints, export, finished
from nas.run.step_timing import paced, search_pace, suited
from nas.searchers.method_names import AUTO, OWN
from nas.show.progress import Progress, telling
from nas.show.tracking.tracker import Tracker
from nas.space.graph import cell_graphs
from nas.space.space import Space
from nas.study.clusters import cluster
from nas.study.storage import keep_history
from nas.study.workers import Processes
from nas.training.ddp import joined
from nas.types import Genotype

if TYPE_CHECKING:
    from nas.oneshot.methods import Method

PICTURES_S = 2.0
"""Pictures are left out where less of a budget is left."""


def search(
    space: str | Space = "darts",
    task: str | Task = "digits",
    method: str | Method = "auto",
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
    names = {"space": name_of(space, Space, who="search"), "task": name_of(task, Task, who="search")}
    if isinstance(method, str):
        names["method"] = method
    else:
        from nas.oneshot.methods import Method

        names["method"] = f"{OWN}{name_of(method, Method, who='search')}"
    config = make_config(with_names(settings, names))
    place = default_folder(config) if out is None else Path(out)
    made = partial(
        prepare, config, place, space=space, task=task, method=method, stop=stop, clock=Clock(config.budget)
    )
    return _run(made, config, place, force=force, progress=progress, trackers=trackers, executor=executor)


def run_job(
    config: Config,
    *,
    out: str | Path | None = None,
    space: Space | None = None,
    task: Task | None = None,
    force: bool = False,
    progress: Progress | bool | None = None,
    stop: Callable[[], bool] | None = None,
    clock: Clock | None = None,
    tell: Tell | None = None,
) -> Result:
    """Runs or resumes the job of a configuration; space and task, if given, come before its names.

    force, progress, stop: as of `nas.search`.
    clock: counts its time and holds its budget; begun now with that of the configuration unless given.
    tell: is shown what the job will cost before anything is trained, and says whether to go on.
    """
    clock, place = clock or Clock(config.budget), default_folder(config) if out is None else Path(out)
    made = partial(prepare, config, place, space=space, task=task, stop=stop, clock=clock)
    return _run(made, config, place, force=force, progress=progress, tell=tell)


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
    settings: those of `nas.Config` in `nas.run.preparation.RETRAINING`, e.g. `{"preset": "standard",
      "retrain": {"epochs": 100}}`.
    progress: as of `nas.search`. trackers: told of every epoch, see there.

    Raises:
        NasError: when a setting, the space or the data cannot be used, or training fails.
        MismatchError: when a form of the bundle is not the scored model.
    """
    data = architecture if isinstance(architecture, Mapping) else read_architecture(Path(architecture))
    config, place = retraining_config(data, task, space=space, settings=settings), Path(out)
    made = partial(prepare, config, place, space=space, task=task, architecture=data, stop=stop)
    return _run(made, config, place, force=force, progress=progress, trackers=trackers)


def _run(
    made: Callable[..., Job],
    config: Config,
    folder: Path,
    *,
    force: bool,
    progress: Progress | bool | None,
    trackers: Sequence[Tracker] = (),
    tell: Tell | None = None,
    executor: Executor | None = None,
) -> Result:
    """Does a job in its folder, alone or with the other ranks. made: the job, given `progress` and `team`."""
    with telling(progress) as told:
        with joined(limit_s=config.rank_timeout) as team:
            if not team.leads:
                follow_to(folder, team)
            job = replace(made(progress=told, team=team), executor=executor)
            if job.genotype is None:
                check_search(job)
            if not team.leads:
                return follow(job, _phases(job))
            with begun(job, trackers, force=force) as job:
                result = finished(job) or whole_job(job, tell)
                job.tracking.finish(result.metrics, job.folder)
        export(job, result)  # without the other ranks, which would wait in vain
    return result


def whole_job(job: Job, tell: Tell | None = None) -> Result:
    """Searches, compares, trains the winner, and writes the result; or trains what is known."""
    with devices.repeatable(enabled=job.config.deterministic):
        audit(job)
        job, plan = plan_budget(job, tell)
        if job.genotype is None:
            job.progress.note(_described(job))
            if job.config.method == AUTO and not plan.has_no_search:
                job.progress.note(_decided(job))
            with workplaces(job) as at_work:
                found = _search(at_work, plan)
                baselines, verdict = compare(at_work, found, plan)
        else:
            found, baselines, verdict = SearchOutcome(()), Baselines(), Verdict(job.genotype)
        last = last_training(job, verdict.best, reserve_s=plan.reserve_s)
        network, trained = train_final(job, verdict.best, last)
        metrics = {**trained, **verdict.metrics}
        if job.genotype is None:
            metrics |= _of_search(job, found, verdict.best)
            metrics |= volumes(job.plan.goals, found.history, baselines.history)
        if plan.seconds:
            metrics |= {"estimated_seconds": plan.total_s, "job_seconds": job.clock.elapsed_s}
        result = Result(
            job.final,
            verdict.best,
            cell_graphs(job.final, verdict.best),
            to_cpu(network),
            rounded(metrics),
            found.history,
            job.folder,
            Inputs.of(job.task),
            baselines.history,
            job.plan.goals,
            job.config.method if job.genotype is None else "",
        )
        _write(job, result, found, verdict)
    return result


def _search(job: Job, plan: BudgetPlan) -> SearchOutcome:
    """By the method of the job; the default architecture where there is no time for it."""
    if plan.has_no_search and job.has_choice and (default := default_of(job)) is not None:
        return SearchOutcome([default], untaught="there is no time for a search that would be worth it")
    by_trials = job.plan.searcher is not None and not job.config.shares_weights
    beside, pace = by_trials and job.config.workers != 0, partial(search_pace, job, typical(job))
    if beside and job.config.workers == 1:  # the only process for trials asks for its threads later
        paced(job, SEARCH, pace)
    until_s = plan.until_s(SEARCH)
    with nullcontext(job) if beside else suited(job, SEARCH, pace) as here:
        if by_trials:
            return search_by_trials(here, until_s=until_s)
        # Supernets are loaded by those who train one alone.
        from nas.run.supernet_phase import search_by_gradients, shared_weights

        if job.plan.searcher is None:
            return search_by_gradients(here, until_s=until_s)
        return search_by_trials(here, until_s=until_s, shared=shared_weights)


def compare(job: Job, found: SearchOutcome, plan: BudgetPlan) -> tuple[Baselines, Verdict]:
    """Random search at equal cost, and the fresh trainings, as far as there is time for them."""
    if found.untaught:
        why = f"{found.untaught}: the space's default architecture is taken"
        job.progress.note(why)
        own = found.history if job.is_own_baseline else ()
        return Baselines(own), Verdict(found.candidates[0], DEFAULT, statements=(why,))
    compares = job.config.baselines and job.has_choice and bool(found.history)
    if plan.limited and BASELINES not in plan.seconds and not job.is_own_baseline:
        compares = False
    baselines = random_search(job, found, until_s=plan.until_s(BASELINES)) if compares else Baselines()
    default = default_of(job) if (compares or job.plan.top_k > 1) and job.has_choice else None
    rivals = {**({} if default is None else {DEFAULT: default}), **baselines.choices}
    start = None
    if job.config.warm_start == "supernet":
        from nas.run.supernet_phase import warm_start

        start = warm_start(found.measure)
    verdict = rerank(job, found.candidates, rivals, start=start, until_s=plan.until_s(FRESH))
    for statement in verdict.statements:
        job.progress.note(statement)
    if verdict.found_by not in (SEARCH, DEFAULT):
        job.progress.note(f"the architecture of baseline {verdict.found_by!r} did better and is taken")
    return baselines, verdict


def look(config: Config, *, progress: Progress | None = None) -> Preview:
    """What the job of a configuration would cost on its device; nothing is written."""
    job = prepare(config, default_folder(config), progress=progress, clock=Clock(config.budget))
    check_search(job)
    return preview(job)


def audit(job: Job) -> None:
    """Audits the task where the job wants that, leaves the findings in its folder, and tells them."""
    if not job.config.audit or (job.folder / AUDIT_FILES[0]).is_file():
        return
    job.progress.note("auditing images and labels")
    found = audit_task(job.task, seed=job.config.seed)
    paths = write_audit(found, job.task, job.folder)
    for note in (*found.summary(), f"suspect images: {paths[1]}"):
        job.progress.note(note)


@contextmanager
def workplaces(job: Job) -> Iterator[Job]:
    """The job with the processes of this machine, or the cluster, that its trials are evaluated in."""
    config = job.config
    alone = config.workers == 0 or job.team.size > 1 or current_process().daemon  # may have no children
    with ExitStack() as stack:
        if not alone:
            job = replace(job, processes=stack.enter_context(closing(Processes(config.device))))
        if job.executor is None and config.executor is not None:
            opened = cluster(config.executor, job.folder, gpus=config.gpus_per_trial)
            job = replace(job, executor=stack.enter_context(opened))
        yield job


def _phases(job: Job) -> dict[str, Callable[[Any], None]]:
    """What another rank does when rank 0 calls it to a phase, by name."""
    from nas.run.supernet_phase import SHARED, help_to_search, help_with_weights

    return {
        SEARCH: lambda _: help_to_search(job),
        SHARED: lambda _: help_with_weights(job),
        RETRAIN: lambda genotype: help_to_retrain(job, tuple(genotype)),
    }


# -- what is told and written -------------------------------------------------------------------------


def _described(job: Job) -> str:
    decisions = counted(len(job.space.decisions), "decision")
    size = f"space {job.space.name}: {decisions}, {job.space.size} architectures"
    return size if job.has_choice else f"{size}; with a single architecture there is nothing to search"


def _decided(job: Job) -> str:
    """What the default method does here."""
    plan, trials = job.plan, "trials on the weights of one supernet"
    if not job.config.shares_weights:
        trials = f"trials of {counted(plan.ladder.granted[-1], 'epoch')} from scratch"
    told = f"{AUTO}: {trials}, around the default architecture and where a model of them hopes for more"
    if plan.top_k == 1 and not job.config.baselines:
        return told
    again = f"{counted(plan.repeats, 'fresh training')} of {counted(plan.top_k_epochs, 'epoch')} each"
    return f"{told}; the best {plan.top_k} and the default are compared by {again}"


def _of_search(job: Job, found: SearchOutcome, best: Genotype) -> dict[str, float]:
    """How long the search took, what it saw of the best, how many trials failed, and for which reasons."""
    counts = failure_summary.count(found.history)
    name = job.problem.val
    seen = [t.metrics[name] for t in found.history if t.state == "done" and t.genotype == best]
    metrics: dict[str, float] = {
        **({f"search_{name}": seen[-1]} if seen else {}),
        "search_seconds": found.seconds,
        "trials": len(found.history),
        "failed_trials": sum(counts.values()),
        **{f"failed_{reason}": number for reason, number in counts.items()},
    }
    if job.plan.searcher is None:
        return metrics
    level = chance(job.search_task, job.search_task.val)
    idle = failure_summary.at_chance(found.history, level, job.problem.objective)
    if idle:
        job.progress.note(
            f"WARNING: {idle} of {len(found.history)} trials are no better than guessing (validation "
            f"{job.problem.words} {level:.3g}): they diverged, or learned too little; lower trial.lr or "
            "raise the epochs"
        )
    return {**metrics, "chance_trials": idle}


def _write(job: Job, result: Result, found: SearchOutcome, verdict: Verdict) -> None:
    """All files of the result, pictures as far as there is time for them; what only a search needs goes."""
    problem = job.problem
    level, value = chance(job.task, job.task.test), result.metrics[problem.test]
    if problem.better(value) <= problem.better(level):
        job.progress.note(
            f"WARNING: the network is no better than guessing (test {problem.words} {value:.3g}, by guessing "
            f"{level:.3g}): it diverged, or learned too little; raise retrain.epochs or the "
            "budget, or lower retrain.lr"
        )
    if verdict.rivals or verdict.found_by != SEARCH:
        compared = {
            "found_by": verdict.found_by,
            "choices": {name: job.space.choices(g) for name, g in verdict.rivals.items()},
            "statements": list(verdict.statements),
        }
        write_json(job.folder / "baselines.json", compared)
    if job.config.storage is not None:
        keep_history(job.storage, job.prefix, job.folder)
    pictures = job.config.pictures and job.clock.left_s > PICTURES_S
    job.clock.save()  # the manifest will hold it
    if job.config.pictures and not pictures:
        job.progress.note("budget: no time for pictures; nas draw makes them")
    method = f", method {result.method}" if result.method else ""
    title = f"{job.space.name} on {job.task.name}{method}"
    write_result(
        result,
        image_shape=job.task.image_shape,
        title=title,
        alphas=found.alphas,
        epochs=found.epochs,
        pictures=pictures,
    )
    clear_checkpoints(job.folder)
