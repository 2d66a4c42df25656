"""The phases of a job before its last training: the search, and the best ones trained again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nas.checkpoint import Checkpoints
from nas.config import Config
from nas.cost import count_params
from nas.errors import NoModelError
from nas.evaluate import Cached, Inherited, Trained, require_memory
from nas.graph import architecture_hash
from nas.guard import user_errors
from nas.journal import journal_storage
from nas.oneshot import differentiable
from nas.oneshot.singlepath import train_shared
from nas.oneshot.supernet import Supernet
from nas.plan import Plan
from nas.progress import Progress
from nas.recipe import Recipe
from nas.result import Alphas
from nas.resumable import Stopped
from nas.retrain_run import epoch_line
from nas.run_folder import CHECKPOINT
from nas.schedule import Fixed, Listed
from nas.searchers import Searcher
from nas.seeding import derive, isolated, rng
from nas.space import Size, Space
from nas.study import JOURNAL, Evaluator, Study
from nas.task import Task
from nas.types import Genotype, Trial


@dataclass(frozen=True, eq=False)
class Job:
    """Everything the phases need.

    task: all images; `search_task` has what the phases before the last training may use.
    final: the space at the size of the last network. recipe: of the last training.
    """

    config: Config
    plan: Plan
    space: Space
    task: Task
    search_task: Task
    final: Space
    recipe: Recipe
    folder: Path
    progress: Progress
    stop: Callable[[], bool]

    def checkpoints(self, phase: str) -> Checkpoints:
        """Where one phase saves its state."""
        return Checkpoints(self.folder / CHECKPOINT / phase)

    def seed(self, phase: str) -> int:
        """The root of one phase's random streams."""
        return derive(self.config.seed, phase)


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    candidates: the best architectures, best first, no two isomorphic.
    history: its trials. seconds: what they and their supernet took. alphas: of a differentiable search.
    """

    candidates: Sequence[Genotype]
    history: Sequence[Trial]
    seconds: float
    alphas: Alphas | None = None


def find(job: Job) -> Found:
    """Searches, by gradients or by trials, as the plan says."""
    searcher = job.plan.searcher
    return _differentiable(job) if searcher is None else _black_box(job, searcher)


def rerank(job: Job, candidates: Sequence[Genotype]) -> tuple[Genotype, dict[str, float]]:
    """Trains the candidates from scratch with fresh seeds; the best by validation, and what was measured."""
    if len(candidates) == 1:
        return candidates[0], {}
    study = Study(
        job.space,
        Listed(tuple(candidates), job.plan.top_k_epochs),
        journal_storage(job.folder / JOURNAL),
        name="rerank",
        seed=job.seed("rerank"),
    )
    job.progress.phase("re-evaluation", len(candidates), done=study.ended)

    def stop() -> bool:
        if job.stop():
            raise Stopped("re-evaluation stopped")
        return False

    folder = job.folder / CHECKPOINT / "rerank"
    study.run(
        Trained(job.space, job.search_task, job.plan.trial, folder=folder, stop=job.stop),
        trials=len(candidates),
        stop=stop,
        on_trial=lambda trial: job.progress.advance(_line(trial)),
    )
    if not (best := study.best()):
        raise NoModelError(f"all {len(candidates)} candidates failed; the last: {study.history[-1].reason}")
    return best[0].genotype, {
        "rerank_val_acc": best[0].metrics["val_acc"],
        "rerank_seconds": study.spent_s,
    }


def _differentiable(job: Job) -> Found:
    """Candidates: what the alphas preferred last, then what they preferred before."""
    if job.space.size == Size(1, exact=True):
        return Found([job.space.sample(rng(0))], (), 0.0)
    supernet = _supernet(job)
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
    return Found(genotypes, study.history, study.spent_s, alphas)


def _black_box(job: Job, searcher: Searcher) -> Found:
    """Candidates: the best trials."""
    evaluator, spent_s = _evaluator(job)
    epochs = 0 if job.config.evaluator == "shared" else job.plan.trial.epochs
    study = Study(
        job.space,
        Fixed(searcher, epochs),
        journal_storage(job.folder / JOURNAL),
        name="search",
        seed=job.seed("search"),
    )
    job.progress.phase("search", job.plan.trials, done=study.ended)

    def enough() -> bool:
        if job.stop():
            raise Stopped(f"search stopped after {study.ended} trials")
        budget = job.plan.budget_s
        return budget is not None and study.ended > 0 and study.spent_s >= budget

    reason = study.run(
        Cached(evaluator, job.space, study.history),
        trials=job.plan.trials,
        stop=enough,
        on_trial=lambda trial: job.progress.advance(_line(trial)),
    )
    if study.ended < job.plan.trials:
        job.progress.note(f"the search ends early: {_why(job, study, reason)}")
    best = study.best(len(study.history))
    if not best:
        raise NoModelError(f"all {study.ended} trials failed; the last one: {study.history[-1].reason}")
    return Found(_distinct(job, (t.genotype for t in best)), study.history, spent_s + study.spent_s)


def _evaluator(job: Job) -> tuple[Evaluator, float]:
    """The evaluator, and the seconds it took to prepare."""
    if job.config.evaluator == "trained":
        folder = job.folder / CHECKPOINT
        return Trained(job.space, job.search_task, job.plan.trial, folder=folder, stop=job.stop), 0.0
    supernet = _supernet(job)
    job.progress.phase("supernet", job.plan.shared.epochs)
    with user_errors():
        curve = train_shared(
            supernet,
            job.search_task,
            job.plan.shared,
            seed=job.seed("shared"),
            checkpoints=job.checkpoints("supernet"),
            on_epoch=lambda report: job.progress.advance(epoch_line(report), done=report.epoch),
            stop=job.stop,
        )
    return Inherited(supernet, job.search_task), sum(curve.seconds)


def _supernet(job: Job) -> Supernet:
    """The job's supernet with fresh weights, counted on the meta device before any memory is taken."""
    device = job.task.train.x.device
    with torch.device("meta"):
        require_memory(count_params(Supernet(job.space)), device)
    with isolated(job.seed("supernet"), "init"):
        return Supernet(job.space).to(device)


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


def _line(trial: Trial) -> str:
    if trial.state == "failed":
        return f"trial {trial.number}: failed, {trial.reason}"
    metrics = trial.metrics
    size = f", {metrics['params']:,.0f} parameters" if "params" in metrics else ""
    return f"trial {trial.number}: validation accuracy {metrics['val_acc']:.4f}{size}, {trial.cost_s:.1f} s"
