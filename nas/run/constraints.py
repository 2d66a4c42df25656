"""What the constraints on costs leave of a space: the searcher kept to it, and the default architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from nas.errors import TrialError
from nas.evaluate.cost_metrics import COUNTED, free_metrics
from nas.run.job import Job
from nas.searchers import Searcher
from nas.searchers.searcher import Bounded
from nas.seeding import rng
from nas.space.latency import LATENCY
from nas.types import Genotype
from nas.user_code import user_errors

DRAWN = 200
"""Changes of a default that breaks a constraint."""


def bounded(job: Job, searcher: Searcher) -> Searcher:
    """The searcher kept to architectures whose last networks keep the constraints on costs."""
    excess = _excess(job)
    return (
        Bounded(searcher, lambda genotype: excess(genotype) == 0) if job.plan.goals.constraints else searcher
    )


def default_of(job: Job) -> Genotype | None:
    """The space's default; where it breaks a constraint on costs, one that keeps them, by few changes of it.

    None where no such one was found.
    """
    key = (f"default under {job.plan.goals} at {dict(job.final.settings)}", ())
    if key not in job.space.memo:
        job.space.memo[key] = _nearest_default(job)
    return cast(Genotype | None, job.space.memo[key])


def _nearest_default(job: Job) -> Genotype | None:
    """Single changes are drawn, and kept where they bring an architecture nearer to the constraints."""
    excess, draw = _excess(job), rng(0, "default")
    found = job.space.default_genotype
    least = excess(found)
    for _ in range(DRAWN):
        if least == 0:
            return found
        changed = job.space.mutate(found, draw)
        if (now := excess(changed)) < least:
            found, least = changed, now
    return None


def _excess(job: Job) -> Callable[[Genotype], float]:
    """By how much the last network of an architecture breaks the constraints that need no training."""
    table = job.latency_table
    free = {*COUNTED, *([LATENCY] if table is not None else [])}
    bounds = [bound for bound in job.plan.goals.constraints if bound.metric in free]

    def excess(genotype: Genotype) -> float:
        if not bounds:
            return 0.0
        try:
            with user_errors():
                costs = free_metrics(job.final, genotype, job.task.image_shape, table)
        except TrialError:  # its trial will fail for this reason, and say so
            return 0.0
        return sum(bound.excess(costs) for bound in bounds)

    return excess
