"""The search phase of a job: by gradients or by trials, up to a list of candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nas.errors import NoModelError
from nas.evaluate.failure_summary import at_chance, diagnosis
from nas.evaluate.metrics import chance
from nas.oneshot.history import Epoch
from nas.results.alphas import Alphas
from nas.run.black_box import bounded, default_of
from nas.run.clock import TimeUp
from nas.run.differentiable import search_by_gradients
from nas.run.job import Job
from nas.run.trial_search import trial_search
from nas.searchers import Searcher
from nas.searchers.goals import Goals
from nas.searchers.halving import finalists
from nas.seeding import rng
from nas.space.graph import architecture_hash
from nas.study.workers import Evaluate
from nas.text import counted
from nas.types import Genotype, Trial

IN_TIME = "no trial of the search was finished in time"
ALIKE = 0.01
"""Of their mean: by how much at least some strengths of a decision differ where its alphas were learned."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    candidates: the best architectures, best first, no two isomorphic.
    history: its trials. seconds: what they and their supernet took.
    alphas, epochs: of a differentiable search.
    measure: the evaluator of its trials, None where gradients searched. fidelity: epochs of a full trial.
    untaught: why nothing was learned, so that its one candidate is the default architecture; empty where
      anything was.
    """

    candidates: Sequence[Genotype]
    history: Sequence[Trial]
    seconds: float
    measure: Evaluate | None = None
    fidelity: int = 0
    alphas: Alphas | None = None
    epochs: Sequence[Epoch] = ()
    untaught: str = ""


def find(job: Job, *, until_s: float | None = None) -> Found:
    """Searches, by gradients or by trials, as the plan says.

    until_s: when it has to be over, by the job's clock; what was found by then counts.
    """
    searcher = job.plan.searcher
    if searcher is None:
        return _differentiable(job, until_s)
    return _black_box(job.until(until_s), searcher, until_s)


def _differentiable(job: Job, until_s: float | None) -> Found:
    if job.config.workers not in (0, 1):
        job.progress.note(f"method {job.config.method!r} runs with one worker: it trains one supernet")
    if not job.has_choice:
        return Found([job.space.sample(rng(0))], (), 0.0)
    found = search_by_gradients(job, until_s=until_s)
    if found.epochs[-1].epoch < job.plan.search.weights.epochs:
        job.progress.note(f"the search ends early, after epoch {found.epochs[-1].epoch}")
    alphas = Alphas.of(job.space, [epoch.strengths for epoch in found.epochs])
    candidates, untaught = _distinct(job, found.candidates), ""
    default = default_of(job)
    if default is not None and all(np.ptp(row) < ALIKE / len(row) for row in found.epochs[-1].strengths):
        candidates, untaught = [default], "the search learned nothing, its alphas are all alike"
    return Found(
        candidates, found.trials, found.seconds, alphas=alphas, epochs=found.epochs, untaught=untaught
    )


def _black_box(job: Job, searcher: Searcher, until_s: float | None) -> Found:
    """Candidates: the best trials of the longest training."""
    try:
        search = trial_search(job, searcher)
    except TimeUp as error:  # while a supernet was trained
        job.progress.note(f"the search ends before its first trial: {error}")
        return _untaught(
            job, searcher, (), "no trial of the search was finished in time", seconds=job.clock.elapsed_s
        )
    study, late = search.study, False
    try:
        reason = search.run(spend_s=until_s)
    except TimeUp as error:
        reason, late = str(error), True
    if study.ended < job.plan.trials:
        job.progress.note(f"the search ends early, after {counted(study.ended, 'trial')}: {reason}")
    best = front_first(finalists(study.history, job.plan.lead), job.plan.goals)
    if not best and late:
        return _untaught(job, searcher, study.history, IN_TIME)
    if not best:
        raise NoModelError(f"all {counted(study.ended, 'trial')} failed:{diagnosis(study.history)}")
    if job.plan.goals.violation(best[0].metrics) > 0:
        job.progress.note(
            f"WARNING: no architecture keeps all constraints ({job.plan.goals}); the nearest is taken"
        )
    seconds = search.prepared_s + study.spent_s
    done = [t for t in study.history if t.state == "done"]
    default, failed = default_of(job), {t.genotype for t in study.history if t.state == "failed"}
    judged = job.plan.goals.objectives == Goals().objectives and default not in {None, *failed}
    if judged and at_chance(done, chance(job.search_task.val)) == len(done):
        no_better = "the search learned nothing, no trial is better than guessing"
        return _untaught(job, searcher, study.history, no_better, seconds=seconds)
    genotypes = _distinct(job, (t.genotype for t in best))
    return Found(genotypes, study.history, seconds, search.evaluate, search.fidelity)


def front_first(ranked: Sequence[Trial], goals: Goals) -> list[Trial]:
    """Trials, ranked by the first objective, with those of the front before all others.

    Otherwise one that another beats could be trained, where both are equal in the first objective.
    """
    longest = [t for t in ranked if t.fidelity == ranked[0].fidelity]
    best = {t.number for t in goals.front(longest)} if len(goals.objectives) > 1 else set()
    return sorted(ranked, key=lambda t: t.number not in best)


def _untaught(
    job: Job, searcher: Searcher, history: Sequence[Trial], why: str, *, seconds: float = 0.0
) -> Found:
    """The default; where no such one keeps the constraints, what the searcher would begin with."""
    default = default_of(job)
    if default is None:
        default = bounded(job, searcher).ask(job.space, history, rng(job.seed("untried")))
    return Found([default], history, seconds, untaught=why)


def _distinct(job: Job, genotypes: Iterable[Genotype]) -> list[Genotype]:
    """The first `top_k` that are not isomorphic to one before."""
    found: dict[str, Genotype] = {}
    for genotype in genotypes:
        found.setdefault(architecture_hash(job.space, genotype), genotype)
        if len(found) == job.plan.top_k:
            break
    return list(found.values())
