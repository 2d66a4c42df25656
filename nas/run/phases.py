"""The phases of a job and how long they take, from the seconds of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nas.oneshot.search import looks
from nas.run.cost_estimate import BASELINES, FINISH, RERANK, RETRAIN, SEARCH, Phase
from nas.run.job import Job
from nas.searchers.fidelity import Fidelity
from nas.study.local import cores
from nas.text import counted
from nas.training.evaluate import FORWARD

START_S = 4.0
"""Until processes that train side by side have begun."""


@dataclass(frozen=True)
class Steps:
    """Seconds of a step.

    trial: of a trial by one thread; alone: by as many as suit it. supernet: searched or shared. final: of the
    last network.
    """

    trial: float
    alone: float
    supernet: float
    final: float


def of_trial(job: Job, step_s: float, epochs: float) -> float:
    """Seconds of a training of so many epochs with its validation."""
    batch = job.plan.trial.batch
    per_epoch = max(1, len(job.search_task.train) // batch)
    return (epochs * per_epoch + FORWARD * len(job.search_task.val) / batch) * step_s


def of_search(job: Job, steps: Steps, trials: int, epochs: float) -> float:
    """Seconds of a search of so many trials; epochs are those of a trial, or of its supernet."""
    plan, images, val = job.plan, len(job.search_task.train), len(job.search_task.val)
    if plan.searcher is None:
        per_epoch = max(1, images // plan.search.weights.batch)
        first, later = (looks(job.search_task, plan.search, first=first) for first in (True, False))
        return (epochs * (per_epoch + later) + first - later) * steps.supernet
    if job.config.shares_weights:
        batch = plan.shared.batch
        return (epochs * max(1, images // batch) + trials * FORWARD * val / batch) * steps.supernet
    workers = cores() if job.config.workers == "auto" else max(1, job.config.workers)
    return trials * of_trial(job, steps.alone, epochs) / workers


def rerank_s(job: Job, steps: Steps, *, places: int, compares: bool) -> float:
    """Seconds of the fresh trainings, `places` of them at a time; 0 where there are none."""
    networks = networks_again(job, compares=compares)
    rounds = math.ceil(networks * job.plan.seeds / places)
    start_s = START_S if places > 1 and networks and not compares else 0.0
    return rounds * of_trial(job, steps.trial, job.plan.top_k_epochs) + start_s


def networks_again(job: Job, *, compares: bool) -> int:
    """How many networks are trained again: the best, the default, and what two baselines have chosen."""
    return 0 if job.plan.top_k == 1 and not compares else job.plan.top_k + 1 + 2 * compares


def testing_s(job: Job, step_s: float) -> float:
    """Seconds that testing the last network takes, of which a step of its training takes so long."""
    return FORWARD * len(job.task.test) / job.recipe.batch * step_s


def phases_of(job: Job, steps: Steps, *, places: int, finish_s: float) -> list[Phase]:
    """All phases in order, without a budget. finish_s: what the last of them takes beside the test."""
    plan = job.plan
    found, search_s = [], 0.0
    if job.has_choice:
        trials, epochs = work_of(job)
        search_s = of_search(job, steps, trials, epochs)
        found.append(Phase(SEARCH, describe(job, trials), search_s))
    compares = plan.baselines and job.has_choice
    if compares and not job.is_own_baseline:
        found.append(Phase(BASELINES, "random search at equal cost", START_S + search_s / places))
    if networks := networks_again(job, compares=compares):
        seconds = rerank_s(job, steps, places=places, compares=compares)
        found.append(Phase(RERANK, again(job, networks), seconds))
    images = len(job.task.train) + len(job.task.val)
    seconds = job.recipe.epochs * max(1, images // job.recipe.batch) * steps.final
    words = f"{counted(job.recipe.epochs, 'epoch')} of {counted(images, 'image')}"
    return [*found, Phase(RETRAIN, words, seconds), last_phase(job, steps, finish_s)]


def last_phase(job: Job, steps: Steps, finish_s: float) -> Phase:
    """What comes after the last training."""
    return Phase(FINISH, "test accuracy, files and pictures", testing_s(job, steps.final) + finish_s)


def again(job: Job, networks: int) -> str:
    """The fresh trainings in words."""
    each = f"{counted(job.plan.seeds, 'seed')}, {counted(job.plan.top_k_epochs, 'epoch')}"
    return f"{counted(networks, 'network')}, {each}"


def work_of(job: Job) -> tuple[int, float]:
    """Trials of the search as planned, and epochs of each, or of their supernet."""
    plan = job.plan
    if plan.searcher is None:
        return 0, plan.search.weights.epochs
    return plan.trials, plan.shared.epochs if job.config.shares_weights else _epochs(
        plan.ladder.rungs, plan.eta
    )


def describe(job: Job, trials: int) -> str:
    """The search in words."""
    plan, count = job.plan, counted(trials, "trial")
    if plan.searcher is None:
        return f"{counted(plan.search.weights.epochs, 'epoch')} of a supernet"
    if job.config.shares_weights:
        return f"{counted(plan.shared.epochs, 'epoch')} of a supernet, {count}"
    if len(plan.ladder) > 1:
        return f"{count}, on {plan.ladder}"
    return f"{count}, {counted(plan.ladder.granted[-1], 'epoch')} each"


def _epochs(rungs: Sequence[Fidelity], eta: int) -> float:
    """Epochs of full size that a trial takes on average: of `eta` on a rung one climbs."""
    shares = [float(eta) ** -i for i in range(len(rungs))]
    work = [r.epochs * r.images * r.width**2 * r.cells * r.image_size**2 for r in rungs]
    added = [now - before for before, now in zip([0.0, *work], work, strict=False)]
    return sum(s * max(a, 0.0) for s, a in zip(shares, added, strict=True)) / sum(shares)
