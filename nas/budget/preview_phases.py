"""The phases of a job and how long they take, from the seconds of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nas.budget.preview import BASELINES, FINISH, RERANK, RETRAIN, SEARCH, Phase
from nas.evaluation.fidelity import Fidelity
from nas.job.job import Job
from nas.oneshot.differentiable import looks
from nas.text import counted
from nas.training.accuracy import FORWARD
from nas.workers.slots import cores


@dataclass(frozen=True)
class Steps:
    """Seconds of a step of a trial, of the last network, and of a supernet, searched or shared."""

    trial: float
    final: float
    search: float
    shared: float


def one_training_s(job: Job, steps: Steps) -> float:
    """Seconds of one training of the re-evaluation."""
    per_epoch = max(1, len(job.search_task.train) // job.plan.trial.batch)
    validated = FORWARD * len(job.search_task.val) / job.plan.trial.batch
    return (job.plan.top_k_epochs * per_epoch + validated) * steps.trial


def testing_s(job: Job, step_s: float) -> float:
    """Seconds that testing the last network takes, of which a step of its training takes so long."""
    return FORWARD * len(job.task.test) / job.recipe.batch * step_s


def phases_of(job: Job, steps: Steps, training_s: float, finish_s: float) -> list[Phase]:
    """All phases in order. finish_s: what the last of them takes beside the test."""
    plan = job.plan
    planned, search_s = _search(job, steps)
    found = [Phase(SEARCH, planned, search_s)]
    compares = plan.baselines and job.has_choice
    if compares and not job.is_own_baseline:
        found.append(Phase(BASELINES, "random search at equal cost", search_s))
    networks = plan.top_k + 2 * compares
    if networks > 1:
        each = f"{counted(plan.seeds, 'seed')}, {counted(plan.top_k_epochs, 'epoch')}"
        words = f"{counted(networks, 'network')}, {each}"
        found.append(Phase(RERANK, words, networks * plan.seeds * training_s))
    images = len(job.task.train) + len(job.task.val)
    per_epoch = max(1, images // job.recipe.batch)
    seconds = job.recipe.epochs * per_epoch * steps.final
    found.append(
        Phase(RETRAIN, f"{counted(job.recipe.epochs, 'epoch')} of {counted(images, 'image')}", seconds)
    )
    found.append(Phase(FINISH, "test accuracy, files and pictures", testing_s(job, steps.final) + finish_s))
    return found


def _search(job: Job, steps: Steps) -> tuple[str, float]:
    plan, images = job.plan, len(job.search_task.train)
    if not job.has_choice:
        return "nothing: there is one architecture", 0.0
    if plan.searcher is None:
        epochs = plan.search.weights.epochs
        per_epoch = max(1, images // plan.search.weights.batch)
        first, later = (looks(job.search_task, plan.search, first=first) for first in (True, False))
        seconds = (epochs * (per_epoch + later) + first - later) * steps.search
        return f"{counted(epochs, 'epoch')} of a supernet", seconds
    if job.config.shares_weights:
        epochs = plan.shared.epochs
        per_epoch = max(1, images // plan.shared.batch)
        validated = plan.trials * steps.shared * FORWARD * len(job.search_task.val) / plan.shared.batch
        words = f"{counted(epochs, 'epoch')} of a supernet, {counted(plan.trials, 'trial')}"
        return words, epochs * per_epoch * steps.shared + validated
    epochs_each = _epochs(plan.ladder.rungs, plan.eta)
    per_epoch = max(1, images // plan.trial.batch)
    workers = cores() if job.config.workers == "auto" else job.config.workers
    validated = FORWARD * len(job.search_task.val) / plan.trial.batch
    seconds = plan.trials * (epochs_each * per_epoch + validated) * steps.trial / workers
    count = "trials" if plan.planned_trials is None else counted(plan.trials, "trial")
    each = (
        f"{counted(plan.ladder.granted[-1], 'epoch')} each" if len(plan.ladder) == 1 else f"on {plan.ladder}"
    )
    return f"{count}, {each}", seconds


def _epochs(rungs: Sequence[Fidelity], eta: int) -> float:
    """Epochs of full size that a trial takes on average: of `eta` on a rung one climbs."""
    shares = [float(eta) ** -i for i in range(len(rungs))]
    work = [r.epochs * r.images * r.width**2 * r.cells * r.image_size**2 for r in rungs]
    added = [now - before for before, now in zip([0.0, *work], work, strict=False)]
    return sum(s * max(a, 0.0) for s, a in zip(shares, added, strict=True)) / sum(shares)
