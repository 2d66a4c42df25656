"""The search phase of a job: by gradients or by trials, up to a list of candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nas.errors import NoModelError
from nas.evaluate import Cached
from nas.graph import architecture_hash
from nas.guard import user_errors
from nas.halving import finalists
from nas.job import Job
from nas.journal import journal_storage
from nas.oneshot import differentiable
from nas.result import Alphas
from nas.resumable import Stopped
from nas.schedule import Listed
from nas.searchers import Searcher
from nas.seeding import rng
from nas.space import Size
from nas.study import JOURNAL, Evaluator, Study
from nas.trial_setup import (
    bounded,
    early_stopped,
    evaluator,
    fresh_supernet,
    informed,
    scheduler,
    trial_line,
    with_costs,
)
from nas.types import Genotype, Trial


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    candidates: the best architectures, best first, no two isomorphic.
    history: its trials. seconds: what they and their supernet took. alphas: of a differentiable search.
    measure: the evaluator of its trials, None where gradients searched. fidelity: epochs of a full trial.
    """

    candidates: Sequence[Genotype]
    history: Sequence[Trial]
    seconds: float
    measure: Evaluator | None = None
    fidelity: int = 0
    alphas: Alphas | None = None


def find(job: Job) -> Found:
    """Searches, by gradients or by trials, as the plan says."""
    searcher = job.plan.searcher
    return _differentiable(job) if searcher is None else _black_box(job, searcher)


def _differentiable(job: Job) -> Found:
    """Candidates: what the alphas preferred last, then what they preferred before."""
    if job.space.size == Size(1, exact=True):
        return Found([job.space.sample(rng(0))], (), 0.0)
    supernet = fresh_supernet(job)
    study = Study(
        job.space, Listed((), 0), journal_storage(job.folder / JOURNAL), name="search", announce=False
    )
    job.progress.phase("search", job.plan.search.weights.epochs, done=len(study.history))

    def record(epochs: Sequence[differentiable.Epoch]) -> None:
        for epoch in epochs[len(study.history) :]:
            trial = Trial(len(study.history), epoch.genotype, fidelity=epoch.epochs)
            study.tell(trial, {"val_acc": epoch.val_acc, "train_loss": epoch.train_loss}, epoch.seconds)
            job.progress.advance(
                f"epoch {epoch.epoch}: supernet accuracy {epoch.val_acc:.4f}, loss {epoch.train_loss:.3f}"
            )

    with user_errors():
        epochs = differentiable.search(
            supernet,
            job.search_task,
            job.plan.search,
            seed=job.seed("search"),
            checkpoints=job.checkpoints("search"),
            budget_s=job.plan.budget_s,
            on_epoch=record,
            stop=job.stop,
        )
    record(epochs)
    if len(epochs) < job.plan.search.weights.epochs:
        job.progress.note(f"the search ends early: {len(epochs)} epochs took the budget")
    genotypes = _distinct(job, (epoch.genotype for epoch in reversed(epochs)))
    alphas = Alphas.of(job.space, [epoch.strengths for epoch in epochs])
    return Found(genotypes, study.history, study.spent_s, alphas=alphas)


def _black_box(job: Job, searcher: Searcher) -> Found:
    """Candidates: the best trials of the longest training."""
    measure, spent_s = evaluator(job)
    fidelity = 0 if job.config.evaluator == "shared" else job.plan.ladder.granted[-1]
    study = Study(
        job.space,
        scheduler(job, bounded(job, informed(job, searcher)), fidelity),
        journal_storage(job.folder / JOURNAL),
        name="search",
        seed=job.seed("search"),
        goals=job.plan.goals,
        announce=job.config.evaluator == "trained",
    )
    job.progress.phase("search", job.plan.trials, done=study.ended)

    def enough() -> bool:
        if job.stop():
            raise Stopped(f"search stopped after {study.ended} trials")
        budget = job.plan.budget_s
        return budget is not None and study.ended > 0 and study.spent_s >= budget

    measured = with_costs(job, early_stopped(job, measure, study), study.history)
    reason = study.run(
        Cached(measured, job.space, study.history),
        trials=job.plan.trials,
        stop=enough,
        on_trial=lambda trial: job.progress.advance(trial_line(trial)),
    )
    if study.ended < job.plan.trials:
        job.progress.note(f"the search ends early: {_why(job, study, reason)}")
    best = finalists(study.history, job.plan.lead)
    if not best:
        raise NoModelError(f"all {study.ended} trials failed; the last one: {study.history[-1].reason}")
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
