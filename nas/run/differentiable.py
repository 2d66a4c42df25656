"""The search phase of a job by gradients: the method as it will be run, and the candidates it leads to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.evaluate.cost_metrics import free_metrics
from nas.files.atomic import read_json, write_json
from nas.files.schemas import NeededRecord, checked
from nas.oneshot import memory_budget
from nas.oneshot.diagnostics import DifferentiableOutcome, Epoch
from nas.oneshot.discretize import keeps_cap
from nas.oneshot.expected_cost import expected_cost
from nas.oneshot.methods import Method
from nas.oneshot.search import search
from nas.oneshot.supernet import Supernet
from nas.results.result import Alphas
from nas.results.run_record import CHECKPOINT, SEARCH
from nas.run.final_network import default_of
from nas.run.job import Clock, Job, SearchOutcome, distinct
from nas.searchers.scheduler import Listed, finalists
from nas.seeding import rng
from nas.show.tracking.tracker import Point, finite
from nas.space.cost import count_params
from nas.space.latency import LATENCY, LatencyTable, measure_table
from nas.space.space import Space
from nas.study.study import Study
from nas.training.checkpoint import Checkpoints
from nas.training.memory_estimate import require_memory
from nas.training.retry import LR_FACTOR, Retry, with_retries
from nas.types import Genotype, Trial
from nas.user_code import user_errors

DRAWS, LIKELY = 2000, 50
"""Architectures that are drawn by the last strengths, and how many of them are candidates."""
PENALTY = 10.0
"""Loss of an expected cost twice as high as its bound."""
ALIKE = 0.01
"""Of their mean: by how much at least some strengths of a decision differ where its alphas were learned."""


def search_by_gradients(job: Job, *, until_s: float | None = None) -> SearchOutcome:
    """Trains the supernet and its alphas; what they prefer at the end comes first, then what they did before.

    Where there are too few, the most likely ones under the last strengths follow. Those that break a
    constraint come after those that keep it, and those with more identities than the method allows after the
    others. Where the alphas are all alike at the end, the default architecture is what is left.

    until_s: when it has to be over, by the job's clock; what was found by then counts.
    """
    if job.config.workers not in (0, 1):
        job.progress.note(f"method {job.config.method!r} runs with one worker: it trains one supernet")
    if not job.has_choice:
        return SearchOutcome([job.space.sample(rng(0))])
    with torch.device("meta"):
        require_memory(count_params(Supernet(job.space)), job.task.train.x.device)
    method, costs = _constrained(job, job.plan.method), _costs(job)
    study = job.study(SEARCH, Listed((), 0), goals=None, seed=0, announce=False)
    method = _within_memory(job, method)
    outcome, _ = with_retries(
        partial(_attempt, job, method, study, costs, until_s=until_s),
        folder=job.folder / CHECKPOINT / SEARCH,
        batch=1,  # what a step of a supernet takes is the business of `memory`
        note=job.progress.note,
        alone=job.team.size == 1,
    )
    epochs, default = outcome.epochs, default_of(job)
    if epochs[-1].epoch < job.plan.method.weights.epochs:
        job.progress.note(f"the search ends early, after epoch {epochs[-1].epoch}")
    if default is not None and all(np.ptp(row) < ALIKE / len(row) for row in epochs[-1].strengths):
        candidates, untaught = [default], "the search learned nothing, its alphas are all alike"
    else:
        candidates, untaught = distinct(job, _candidates(job, method, outcome, costs)), ""
    return SearchOutcome(
        candidates,
        study.history,
        study.spent_s,
        alphas=Alphas.of(job.space, [epoch.strengths for epoch in epochs]),
        epochs=[*map(recorded, epochs)],
        untaught=untaught,
    )


def _candidates(
    job: Job, method: Method, outcome: DifferentiableOutcome, costs: Callable[[Genotype], dict[str, float]]
) -> list[Genotype]:
    """What was preferred, and what is likely under the last strengths, by constraints and identities."""
    likely = _likely(job.space, outcome.strengths, rng(job.seed(SEARCH), "likely"))
    bounds, cap = job.plan.goals.constraints, method.identities

    def place(genotype: Genotype) -> tuple[float, bool]:
        excess = sum(bound.excess(costs(genotype)) for bound in bounds) if bounds else 0.0
        return excess, cap is not None and not keeps_cap(job.space, genotype, cap)

    return sorted(dict.fromkeys([*outcome.selected, *likely]), key=place)


def help_to_search(job: Job) -> None:
    """What the other ranks do while rank 0 searches; what it has measured before they read in the folder."""
    method = _within_memory(job, _constrained(job, job.plan.method))
    with user_errors():
        search(job.space, job.search_task, method, seed=job.seed(SEARCH), stop=job.stop, team=job.team)


def _attempt(
    job: Job,
    method: Method,
    study: Study,
    costs: Callable[[Genotype], dict[str, float]],
    retry: Retry,
    *,
    until_s: float | None,
) -> DifferentiableOutcome:
    """Searches at the learning rate that is left, and writes down every epoch: a trial, and the strengths."""
    tried = [t for t in study.history if t.metrics.get(LR_FACTOR, 1.0) != retry.lr_factor]
    job.progress.phase(SEARCH, method.weights.epochs, done=len(study.history) - len(tried))
    job.team.call(SEARCH)

    def record(epochs: Sequence[Epoch]) -> None:
        for epoch in epochs[len(study.history) - len(tried) :]:
            trial = Trial(len(study.history), epoch.genotype, fidelity=epoch.epochs)
            metrics = {**_metrics(epoch), **costs(epoch.genotype), **retry.metrics}
            study.tell(trial, metrics, epoch.seconds)
            job.progress.advance(_line(epoch), done=epoch.epoch)
            for event in epoch.events:
                job.progress.note(f"epoch {epoch.epoch}: {event}")
        Alphas.of(job.space, [epoch.strengths for epoch in epochs]).write(job.folder)
        measured = [_metrics(epoch) for epoch in epochs]
        job.tracking.tell(of_search(study.name, job.space, epochs, measured, after=len(tried)))

    outcome = search(
        job.space,
        job.search_task,
        dataclasses.replace(method, weights=retry.of(method.weights)),
        seed=job.seed(SEARCH),
        prepare=_seeded(job),
        checkpoints=Checkpoints(retry.place(job.folder / CHECKPOINT / SEARCH)),
        left_s=None if until_s is None else partial(_left_s, job.clock, until_s),
        on_epoch=record,
        stop=job.stop,
        team=job.team,
    )
    record(outcome.epochs)
    return outcome


def _left_s(clock: Clock, until_s: float) -> float:
    return -1.0 if clock.late(until_s) else until_s - clock.elapsed_s


def _metrics(epoch: Epoch) -> dict[str, float]:
    """What is recorded of an epoch; numbers that were not measured are left out."""
    health = epoch.health
    found = {
        "val_acc": epoch.val_acc,
        "train_loss": epoch.train_loss,
        "skip_share": health.skip_share,
        "alpha_entropy": health.entropy,
        "eigenvalue": health.eigenvalue,
        "eigenvalue_mean": epoch.growth.mean,
        "eigenvalue_alarm": epoch.growth.level,
        "gradient_matching": health.matching,
        "discretisation_gap": health.gap,
        "changes": float(health.changes),
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


def recorded(epoch: Epoch) -> dict[str, object]:
    """The fields of an `EpochRecord`, and what else was measured, as health.json holds them."""
    events, shares = list(epoch.events), epoch.health.skip_shares
    return {"epoch": epoch.epoch, **_metrics(epoch), "skip_shares": shares, "events": events}


def _line(epoch: Epoch) -> str:
    health = epoch.health
    curvature = f", eigenvalue {health.eigenvalue:.2g}" if np.isfinite(health.eigenvalue) else ""
    gap = f", gap {health.gap:+.3f}" if np.isfinite(health.gap) else ""
    return (
        f"epoch {epoch.epoch}: supernet accuracy {epoch.val_acc:.4f}, loss {epoch.train_loss:.3f}, "
        f"skips {health.skip_share:.0%}{gap}{curvature}"
    )


def _constrained(job: Job, method: Method) -> Method:
    """The method with a penalty for each constraint, on the cost of the last network."""
    bounds = job.plan.goals.constraints
    if not bounds:
        return method
    table = _table(job) if any(bound.metric == LATENCY for bound in bounds) else None
    penalties = [
        expected_cost(job.final, job.task.image_shape, bound, table=table, weight=PENALTY) for bound in bounds
    ]
    return dataclasses.replace(method, regularizers=(*method.regularizers, *penalties))


def _table(job: Job) -> LatencyTable:
    """The given latencies by option, or those of this device, measured once for a run."""
    if job.latency_table is not None:
        return job.latency_table
    path = job.folder / "latency.json"
    if not path.exists():
        job.progress.note("measuring what each operation adds to the latency on this device")
        measure_table(job.final, job.task.image_shape, job.task.train.x.device).write(path)
    return LatencyTable.read(path)


def _within_memory(job: Job, method: Method) -> Method:
    """The method changed to fit the memory budget; a resumed run is changed as it was before."""
    if job.config.memory is None:
        return method
    path = job.folder / "memory.json"
    if not path.exists():
        job.progress.note("memory: a step is measured on a few images")
        found = memory_budget.fit(
            job.space, job.search_task, method, job.config.memory, ranks=job.team.size, stop=job.stop
        )
        write_json(path, {**dataclasses.asdict(found.change), "needed": found.needed})
    record = read_json(path)
    change = checked(memory_budget.Change, record, path, "record of what fits the memory")
    needed = checked(NeededRecord, record, path, "record of what fits the memory").needed
    words = ", ".join(change.words(method)) or "nothing has to change"
    job.progress.note(
        f"memory: a step needs {memory_budget.gib(needed)} of {memory_budget.gib(job.config.memory)}; {words}"
    )
    return change.of(method)


def _costs(job: Job) -> Callable[[Genotype], dict[str, float]]:
    """What the constraints need to know of an architecture."""
    wanted = {bound.metric for bound in job.plan.goals.constraints}
    table = _table(job) if LATENCY in wanted else None

    def costs(genotype: Genotype) -> dict[str, float]:
        if not wanted:
            return {}
        found = free_metrics(job.final, genotype, job.task.image_shape, table)
        return {name: value for name, value in found.items() if name in wanted}

    return costs


def _likely(
    space: Space, strengths: Sequence[NDArray[np.float64]], draw: np.random.Generator
) -> list[Genotype]:
    """Valid architectures drawn in proportion to the strengths, the most likely first."""
    logs = [np.log(np.maximum(row, 1e-12)) for row in strengths]
    drawn = {
        space.nearest([row - np.log(draw.exponential(size=len(row))) for row in logs]) for _ in range(DRAWS)
    }
    score = {g: sum(float(row[o]) for row, o in zip(logs, g, strict=True)) for g in drawn}
    return sorted(drawn, key=lambda g: (-score[g], g))[:LIKELY]


def _seeded(job: Job) -> Callable[[Supernet], None] | None:
    """Sets the alphas by the best trials of an earlier run."""
    folder = job.config.seed_alphas
    if folder is None:
        return None
    tried = finalists(Study.read(Path(folder), SEARCH, job.space), job.plan.goals)
    if not tried:
        raise ConfigError(f"seed_alphas: {folder} holds no finished trial of space {job.space.name!r}")
    best = tried[: max(1, len(tried) // 5)]

    def prepare(supernet: Supernet) -> None:
        supernet.prefer([trial.genotype for trial in best])

    return prepare


def of_search(
    series: str, space: Space, epochs: Sequence[Epoch], metrics: Sequence[Mapping[str, float]], *, after: int
) -> Iterator[Point]:
    """One point for each epoch of a search by gradients: its metrics, and the alphas by decision.

    metrics: of each epoch. after: epochs that were told before the first one; one that the search went back
      on counts.
    """
    options = {decision.name: decision.options for decision in space.decisions}
    for number, (epoch, measured) in enumerate(zip(epochs, metrics, strict=True), start=after + 1):
        values = {"epoch": float(epoch.epoch), "seconds": epoch.seconds, **measured}
        alphas = dict(zip(options, epoch.strengths, strict=True))
        yield Point(series, number, finite(values), alphas, options)
