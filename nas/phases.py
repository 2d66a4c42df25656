"""The search phase of a job: by gradients or by trials, up to a list of candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nas.errors import NoModelError
from nas.evaluate import Cached
from nas.failures import diagnosis
from nas.gradient_search import search_by_gradients
from nas.graph import architecture_hash
from nas.halving import finalists
from nas.job import Job
from nas.journal import journal_storage
from nas.oneshot.record import Epoch
from nas.result import Alphas
from nas.resumable import Stopped
from nas.searchers import Searcher
from nas.seeding import rng
from nas.space import Size
from nas.study import JOURNAL, Evaluator, Study
from nas.trial_setup import (
    bounded,
    early_stopped,
    evaluator,
    fitting,
    grown,
    informed,
    remembering,
    scheduler,
    trial_line,
    with_costs,
)
from nas.types import Genotype, Trial


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    candidates: the best architectures, best first, no two isomorphic.
    history: its trials. seconds: what they and their supernet took.
    alphas, epochs: of a differentiable search.
    measure: the evaluator of its trials, None where gradients searched. fidelity: epochs of a full trial.
    """

    candidates: Sequence[Genotype]
    history: Sequence[Trial]
    seconds: float
    measure: Evaluator | None = None
    fidelity: int = 0
    alphas: Alphas | None = None
    epochs: Sequence[Epoch] = ()


def find(job: Job) -> Found:
    """Searches, by gradients or by trials, as the plan says."""
    searcher = job.plan.searcher
    return _differentiable(job) if searcher is None else _black_box(job, searcher)


def _differentiable(job: Job) -> Found:
    if job.space.size == Size(1, exact=True):
        return Found([job.space.sample(rng(0))], (), 0.0)
    found = search_by_gradients(job)
    if found.epochs[-1].epoch < job.plan.search.weights.epochs:
        job.progress.note(f"the search ends early, after epoch {found.epochs[-1].epoch}")
    alphas = Alphas.of(job.space, [epoch.strengths for epoch in found.epochs])
    return Found(
        _distinct(job, found.candidates), found.trials, found.seconds, alphas=alphas, epochs=found.epochs
    )


def _black_box(job: Job, searcher: Searcher) -> Found:
    """Candidates: the best trials of the longest training."""
    measure, spent_s = evaluator(job)
    fidelity = 0 if job.config.shares_weights else job.plan.ladder.granted[-1]
    study = Study(
        job.space,
        scheduler(job, fitting(job, bounded(job, informed(job, searcher)), measure), fidelity),
        journal_storage(job.folder / JOURNAL),
        name="search",
        seed=job.seed("search"),
        goals=job.plan.goals,
        announce=not job.config.shares_weights,
    )
    job.progress.phase("search", job.plan.trials, done=study.ended)

    def enough() -> bool:
        if job.stop():
            raise Stopped(f"search stopped after {study.ended} trials")
        budget = job.plan.budget_s
        return budget is not None and study.ended > 0 and study.spent_s >= budget

    trained = grown(job, early_stopped(job, measure, study), study)
    measured = with_costs(job, trained, study.history)
    reason = study.run(
        Cached(remembering(job, measured, measure, study.history), job.space, study.history),
        trials=job.plan.trials,
        stop=enough,
        on_trial=lambda trial: job.progress.advance(trial_line(trial)),
        max_failures=job.config.max_failures,
    )
    if study.ended < job.plan.trials:
        job.progress.note(f"the search ends early: {_why(job, study, reason)}")
    best = finalists(study.history, job.plan.lead)
    if not best:
        raise NoModelError(f"all {study.ended} trials failed:{diagnosis(study.history)}")
    if job.plan.goals.violation(best[0].metrics) > 0:
        job.progress.note(f"no architecture keeps all constraints ({job.plan.goals}); the nearest is taken")
    genotypes = _distinct(job, (t.genotype for t in best))
    return Found(genotypes, study.history, spent_s + study.spent_s, measure, fidelity)


def _distinct(job: Job, genotypes: Iterable[Genotype]) -> list[Genotype]:
    """The first `top_k` that are not isomorphic to one before."""
    found: dict[str, Genotype] = {}
    for genotype in genotypes:
        found.setdefault(architecture_hash(job.space, genotype), genotype)
        if len(found) == job.plan.top_k:
            break
    return list(found.values())


def _why(job: Job, study: Study, reason: str) -> str:
    budget = job.plan.budget_s
    if budget is not None and study.spent_s >= budget:
        return f"its {study.ended} trials took {study.spent_s:.0f} s, the budget is {budget:.0f} s"
    return reason
