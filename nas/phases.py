"""The search phase of a job: by gradients or by trials, up to a list of candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from nas.checkpoint import Checkpoints
from nas.config import Config
from nas.cost import count_params
from nas.errors import ConfigError, NoModelError, TrialError
from nas.evaluate import Cached, Inherited, Trained, require_memory
from nas.fidelity import Fidelity
from nas.graph import architecture_hash
from nas.guard import user_errors
from nas.halving import Hyperband, SuccessiveHalving, finalists
from nas.journal import journal_storage
from nas.laddered import Laddered
from nas.latency import LatencyTable
from nas.learning_curves import extrapolate
from nas.measured import COUNTED, LATENCY, TRAINED, Measured, free_metrics
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
from nas.schedule import Fixed, Listed, Scheduler
from nas.scored import Scored
from nas.searchers import Guided, Searcher
from nas.searchers.bounded import Bounded
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

    @cached_property
    def latency_table(self) -> LatencyTable | None:
        """The table that latencies are looked up in, if one was named."""
        path = self.config.latency_table
        return None if path is None else LatencyTable.read(Path(path))

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
    return Found(genotypes, study.history, study.spent_s, alphas=alphas)


def _black_box(job: Job, searcher: Searcher) -> Found:
    """Candidates: the best trials of the longest training."""
    measure, spent_s = evaluator(job)
    fidelity = 0 if job.config.evaluator == "shared" else job.plan.ladder.granted[-1]
    study = Study(
        job.space,
        _scheduler(job, bounded(job, _informed(job, searcher)), fidelity),
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

    measured = with_costs(job, _early_stopped(job, measure, study), study.history)
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


def check_search(job: Job) -> None:
    """Raises ConfigError when a metric, a latency table or an earlier run cannot be used, before any work."""
    if job.plan.searcher is not None:
        _informed(job, job.plan.searcher)

    def unasked(trial: Trial, rng: np.random.Generator) -> Mapping[str, float]:
        raise NotImplementedError

    with_costs(job, unasked, ())


def bounded(job: Job, searcher: Searcher) -> Searcher:
    """The searcher kept to architectures whose parameters and the like are within the constraints."""
    table = job.latency_table
    free = {*COUNTED, *([LATENCY] if table is not None else [])}
    bounds = [bound for bound in job.plan.goals.constraints if bound.metric in free]
    if not bounds:
        return searcher

    def holds(genotype: Genotype) -> bool:
        try:
            with user_errors():
                costs = free_metrics(job.space, genotype, job.task.image_shape, table)
        except TrialError:  # its trial will fail for this reason, and say so
            return True
        return all(bound.excess(costs) == 0 for bound in bounds)

    return Bounded(searcher, holds)


def with_costs(job: Job, measure: Evaluator, history: Sequence[Trial]) -> Evaluator:
    """The evaluator and the costs that the goals need."""
    wanted = job.plan.goals.metrics
    if not set(wanted) - {*TRAINED, "params", "macs"}:
        return measure
    shape, device = job.task.image_shape, job.task.train.x.device
    return Measured(measure, job.space, shape, device, wanted, table=job.latency_table, history=history)


def _scheduler(job: Job, searcher: Searcher, fidelity: int) -> Scheduler:
    plan = job.plan
    match plan.scheduler:
        case "successive-halving":
            return SuccessiveHalving(searcher, plan.ladder, plan.eta, plan.goals)
        case "hyperband":
            return Hyperband(searcher, plan.ladder, plan.eta, plan.goals)
    return Fixed(searcher, fidelity)


def _informed(job: Job, searcher: Searcher) -> Searcher:
    """A guided searcher with the earlier run and the proxies that it was promised."""
    if not isinstance(searcher, Guided):
        return searcher
    if job.plan.earlier:
        trials = Study.read(Path(job.plan.earlier), "search", job.space)
        if not any(trial.state == "done" for trial in trials):
            raise ConfigError(f"searcher.earlier: {job.plan.earlier} holds no finished trial to learn from")
        for trial in trials:
            if trial.state == "done":
                job.plan.goals.check(trial)
        searcher = dataclasses.replace(searcher, earlier=tuple(trials))
    if job.plan.proxies:
        scored = Scored(job.space, job.search_task, job.plan.proxies)
        searcher = dataclasses.replace(searcher, describe=scored)
    return searcher


def _early_stopped(job: Job, measure: Evaluator, study: Study) -> Evaluator:
    """The evaluator, giving up trials that will hardly beat the best one so far."""
    chance = job.plan.early_stop
    if not chance or not isinstance(measure, Trained):
        return measure

    def hopeless(accuracies: Sequence[float], epochs: int) -> bool:
        kept = [t for t in study.history if t.state == "done" and job.plan.goals.violation(t.metrics) == 0]
        done = [t.metrics["val_acc"] for t in kept]
        if len(accuracies) < 2 or not done:
            return False
        return extrapolate(accuracies, at=epochs).probability_above(max(done)) < chance

    return dataclasses.replace(measure, hopeless=hopeless)


def evaluator(job: Job) -> tuple[Evaluator, float]:
    """The evaluator of the trials, and the seconds it took to prepare."""
    if job.config.evaluator == "trained":
        return _trained(job), 0.0
    return shared_weights(job)


def shared_weights(job: Job) -> tuple[Evaluator, float]:
    """A trained supernet as an evaluator, and the seconds that it took."""
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


def _trained(job: Job) -> Evaluator:
    """From scratch for one rung of all images at full size, else up the ladder."""
    ladder, folder = job.plan.ladder, job.folder / CHECKPOINT
    if len(ladder) == 1 and ladder.rungs[0] == Fidelity(ladder.rungs[0].epochs):
        return Trained(job.space, job.search_task, job.plan.trial, folder=folder, stop=job.stop)
    return Laddered(
        job.space,
        job.search_task,
        job.plan.trial,
        ladder,
        folder / "ladder",
        seed=job.seed("search"),
        stop=job.stop,
    )


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


def trial_line(trial: Trial) -> str:
    """One ended trial in words."""
    if trial.state == "failed":
        return f"trial {trial.number}: failed, {trial.reason}"
    metrics = trial.metrics
    size = f", {metrics['params']:,.0f} parameters" if "params" in metrics else ""
    return f"trial {trial.number}: validation accuracy {metrics['val_acc']:.4f}{size}, {trial.cost_s:.1f} s"
