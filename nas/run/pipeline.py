"""From a prepared job to its written result: the phases in their order, and what is told of them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing import current_process

import numpy as np

from nas.data.preprocessing import Inputs
from nas.evaluate import failure_summary
from nas.evaluate.significance import chance, rounded
from nas.files.atomic import write_json
from nas.results.result import Result, baselines_of, to_cpu
from nas.results.run_record import DEFAULT, RANDOM, SEARCH
from nas.run.black_box import default_of
from nas.run.differentiable import health_of
from nas.run.final_training import last_training, train_final
from nas.run.forecast import Forecast
from nas.run.job import Job
from nas.run.reevaluate import Verdict, rerank
from nas.run.run_folder import clear_checkpoints, write_result
from nas.run.search_phase import Baselines, Found, find, run_baselines
from nas.run.step_timing import paced, search_pace, suited
from nas.run.supernet_phase import warm_start
from nas.searchers.halving import longest
from nas.searchers.pareto import hypervolume
from nas.seeding import rng
from nas.space.graph import cell_graphs
from nas.study.clusters import cluster
from nas.study.local_processes import processes_on
from nas.study.storage import keep_history
from nas.text import counted

PICTURES_S = 2.0
"""Pictures are left out where less of a budget is left."""


def whole_job(job: Job, ahead: Forecast | None) -> Result:
    """Searches, compares, trains the winner, and writes the result.

    ahead: what it is going to do, where anybody wants to know or there is a budget.
    """
    size = job.space.size
    job.progress.note(
        f"space {job.space.name}: {counted(len(job.space.decisions), 'decision')}, {size} architectures"
    )
    if not job.has_choice:
        job.progress.note("the space holds a single architecture, so there is nothing to search")
    config = job.config
    alone = config.workers == 0 or job.team.size > 1 or current_process().daemon  # may have no children
    with ExitStack() as stack:
        if not alone:
            job = replace(job, processes=stack.enter_context(processes_on(config.device)))
        if job.executor is None and config.executor is not None:
            opened = cluster(config.executor, job.folder, gpus=config.gpus_per_trial)
            job = replace(job, executor=stack.enter_context(opened))
        found = _found(job, ahead)
        baselines, verdict = _compared(job, found, ahead)
    _tell(job, verdict)
    best, last = verdict.best, last_training(job, verdict.best, ahead)
    network, trained = train_final(job, best, last)
    _warn_of_guessing(job, trained["test_acc"])
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
    result = Result(
        job.final,
        best,
        cell_graphs(job.final, best),
        to_cpu(network),
        rounded(metrics),
        found.history,
        job.folder,
        Inputs.of(job.task),
        baselines_of(baselines.history, job.plan.goals, method=job.config.method),
        job.plan.goals,
        job.config.is_differentiable,
    )
    _write(job, result, found, verdict)
    return result


def _write(job: Job, result: Result, found: Found, verdict: Verdict) -> None:
    """All files of the result, pictures as far as there is time for them; what only a search needs goes."""
    if verdict.rivals or verdict.found_by != SEARCH:
        compared = {
            "found_by": verdict.found_by,
            "choices": {name: job.space.choices(g) for name, g in verdict.rivals.items()},
            "statements": list(verdict.statements),
        }
        write_json(job.folder / "baselines.json", compared)
    title = f"{job.space.name} on {job.task.name}, method {job.config.method}"
    if job.config.storage is not None:
        keep_history(job.storage, job.prefix, job.folder)
    pictures = job.config.pictures and job.clock.left_s > PICTURES_S
    job.clock.save()  # the manifest will hold it
    if job.config.pictures and not pictures:
        job.progress.note("budget: no time for pictures; nas draw makes them")
    write_result(
        result,
        image_shape=job.task.image_shape,
        title=title,
        alphas=found.alphas,
        epochs=health_of(found.epochs),
        pictures=pictures,
    )
    clear_checkpoints(job.folder)


def _found(job: Job, ahead: Forecast | None) -> Found:
    """What the search found; the default architecture where there is no time to search."""
    default = default_of(job) if job.has_choice else None
    allocation = None if ahead is None else ahead.allocation
    if allocation is not None and not allocation.epochs and default is not None:
        return Found([default], (), 0.0, untaught="there is no time for a search that would be worth it")
    until_s = None if ahead is None else ahead.until_s("search")
    alone = job.plan.searcher is None or job.config.shares_weights or job.config.workers == 0
    if not job.has_choice or not (alone or job.config.workers == 1):
        return find(job, until_s=until_s)
    genotype = job.space.sample(rng(0)) if default is None else default
    pace = partial(search_pace, job, genotype)
    if not alone:
        paced(job, SEARCH, pace)  # for the process that trains the trials
        return find(job, until_s=until_s)
    with suited(job, SEARCH, pace) as suited_job:
        return find(suited_job, until_s=until_s)


def _compared(job: Job, found: Found, ahead: Forecast | None) -> tuple[Baselines, Verdict]:
    """The baselines and the fresh trainings, as far as there is time for them."""
    if found.untaught:
        why = f"{found.untaught}: the space's default architecture is taken"
        own = found.history if job.is_own_baseline else ()
        return Baselines(own, {}), Verdict(found.candidates[0], DEFAULT, {}, (why,))
    compares = job.plan.baselines and job.has_choice and bool(found.history)
    allocation = None if ahead is None else ahead.allocation
    if allocation is not None and not allocation.baselines_s and not job.is_own_baseline:
        compares = False
    races = (compares or job.plan.top_k > 1) and job.has_choice
    default = default_of(job) if races else None
    baselines_s, rerank_s = (
        None if ahead is None else ahead.until_s("search", "baselines", *more) for more in ((), ("rerank",))
    )
    baselines = run_baselines(job, found, until_s=baselines_s) if compares else Baselines((), {})
    verdict = rerank(
        job,
        found.candidates,
        {**({} if default is None else {DEFAULT: default}), **baselines.choices},
        start=warm_start(job, found.measure),
        until_s=rerank_s,
    )
    return baselines, verdict


def _times(job: Job, ahead: Forecast | None) -> dict[str, float]:
    """What was estimated, and what the job has taken up to the writing of its result."""
    if ahead is None:
        return {}
    return {"estimated_seconds": ahead.seconds, "job_seconds": job.clock.elapsed_s}


def _failures(job: Job, found: Found) -> dict[str, float]:
    """How many trials failed, for each reason too, and how many learned nothing."""
    counts = failure_summary.count(found.history)
    metrics: dict[str, float] = {
        "failed_trials": sum(counts.values()),
        **{f"failed_{k}": v for k, v in counts.items()},
    }
    if job.plan.searcher is None:
        return metrics
    level = chance(job.search_task.val)
    idle = failure_summary.at_chance(found.history, level)
    if idle:
        job.progress.note(
            f"WARNING: {idle} of {len(found.history)} trials are no better than guessing (validation "
            f"accuracy at most {level:.3f}): they diverged, or learned too little; lower trial.lr or raise "
            "the epochs"
        )
    return {**metrics, "chance_trials": idle}


def _warn_of_guessing(job: Job, accuracy: float) -> None:
    """accuracy: of the delivered network on the test images."""
    level = chance(job.task.test)
    if accuracy <= level:
        job.progress.note(
            f"WARNING: the network is no better than guessing (test accuracy {accuracy:.3f}, at most "
            f"{level:.3f} by guessing): it diverged, or learned too little; raise retrain.epochs or the "
            "budget, or lower retrain.lr"
        )


def _tell(job: Job, verdict: Verdict) -> None:
    for statement in verdict.statements:
        job.progress.note(statement)
    if verdict.found_by not in (SEARCH, DEFAULT):
        job.progress.note(f"the architecture of baseline {verdict.found_by!r} did better and is taken")


def _volumes(job: Job, found: Found, baselines: Baselines) -> dict[str, float]:
    """With several objectives, the hypervolumes of search and random search above their common worst.

    Each is that of the trials of its longest training.
    """
    goals = job.plan.goals
    kept = {
        name: longest(history, goals)
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
