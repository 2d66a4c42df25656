"""How the time of a job is divided, planned backwards: the last training first, a search with what it leaves.

Measured with 4,000 images on one core: a last training of some 2,200 steps comes within 0.2 points of where
it would end, one of 12 epochs does not; and up to three minutes no share of time that was searched in paid.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from nas.data.task import Task
from nas.run.job import Job
from nas.run.phases import Steps, of_search, rerank_s
from nas.searchers.fidelity import Fidelity, Ladder
from nas.training.recipe import Recipe, compressed

LAST = 0.5
"""The least share of the time that the last training gets."""
TRIALS, EPOCHS = 12, 6
"""A search is worth its time from so many trials on, of so many epochs each."""
SHARED = 0.7
"""Of the time of a search on shared weights, for their training."""
SLACK = 0.1
"""Of what was planned, the last training included: by how much phases before it may be late before a cut."""
AUDITED, AUDIT_S, AUDIT_PAIRS = 0.1, 0.004, 20_000
"""Share of the time that an audit may take; its seconds for an image; so many images take twice as long."""
AUDIT_LEAST_S = 3.0
"""Of an audit of however few images: its networks are trained for a least number of steps."""


@dataclass(frozen=True)
class Allocation:
    """What fits into a budget.

    trials, epochs: of the search, `epochs` those of a trial or of a supernet; none where nothing is searched.
    search_s, baselines_s, rerank_s: seconds of the phases; 0 for one that is left out.
    last_s: seconds of the last training.
    """

    last_s: float
    trials: int = 0
    epochs: int = 0
    search_s: float = 0.0
    baselines_s: float = 0.0
    rerank_s: float = 0.0


def allocate(job: Job, steps: Steps, usable_s: float, *, places: int) -> Allocation:
    """Divides so many seconds. places: of trainings that are made side by side."""
    rest_s = (1 - LAST) * usable_s
    for compares in (True, False) if job.plan.baselines and not job.is_own_baseline else (False,):
        again_s = rerank_s(job, steps, places=places, compares=compares)
        search_s = (rest_s - again_s) / (1 + compares / places)
        if job.has_choice and (found := _fitted(job, steps, search_s)) is not None:
            trials, epochs = found
            search_s = min(search_s, of_search(job, steps, trials, epochs))
            beside_s = compares * search_s / places
            last_s = usable_s - search_s - beside_s - again_s
            return Allocation(last_s, trials, epochs, search_s, beside_s, again_s)
    return Allocation(usable_s)


def _fitted(job: Job, steps: Steps, seconds: float) -> tuple[int, int] | None:
    """Trials and epochs of a search that is worth its time; None where there is not enough of it."""
    plan, config = job.plan, job.config
    if plan.searcher is None or config.shares_weights:
        recipe = plan.shared if plan.searcher is not None else plan.search.weights
        share = seconds if plan.searcher is None else SHARED * seconds
        epochs = min(recipe.epochs, int(share / max(1e-9, of_search(job, steps, 0, 1))))
        return (plan.trials, epochs) if epochs >= min(EPOCHS, recipe.epochs) else None
    wanted = min(TRIALS, config.trials or TRIALS)
    epochs = plan.ladder.granted[-1]
    while epochs > EPOCHS and _is_free(job) and of_search(job, steps, wanted, epochs) > seconds:
        epochs -= 1
    trials = int(seconds / max(1e-9, of_search(job, steps, 1, epochs)))
    return (min(trials, config.trials or trials), epochs) if trials >= wanted else None


def _is_free(job: Job) -> bool:
    """Whether the user has left the epochs of a trial open."""
    config = job.config
    fixed = config.epochs is not None or config.fidelity is not None or "epochs" in config.trial
    return not fixed and config.scheduler == "fixed" and job.plan.trial.epochs > EPOCHS


def applied(job: Job, found: Allocation) -> Job:
    """The job with the trials and epochs of an allocation."""
    plan = job.plan
    if not found.epochs:
        return job
    if plan.searcher is None:
        weights = shortened(plan.search.weights, found.epochs)
        return dataclasses.replace(
            job, plan=dataclasses.replace(plan, search=dataclasses.replace(plan.search, weights=weights))
        )
    if job.config.shares_weights:
        return dataclasses.replace(
            job, plan=dataclasses.replace(plan, shared=shortened(plan.shared, found.epochs))
        )
    ladder = Ladder((Fidelity(found.epochs),)) if _is_free(job) else plan.ladder
    return dataclasses.replace(job, plan=dataclasses.replace(plan, trials=found.trials, ladder=ladder))


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """Its schedule compressed, and by steps, as by few epochs it would end at a high rate."""
    return (
        recipe
        if epochs == recipe.epochs
        else dataclasses.replace(compressed(recipe, epochs), schedule="step")
    )


def allows_audit(task: Task, budget_s: float) -> bool:
    """Whether the images can be audited in a small share of the time."""
    count = sum(len(split) for split in (task.train, task.val, task.test))
    pixels = task.image_shape[1] * task.image_shape[2]
    expected_s = AUDIT_S * count * (1 + count / AUDIT_PAIRS) * max(1.0, pixels / 28**2)
    return max(AUDIT_LEAST_S, expected_s) <= AUDITED * budget_s
