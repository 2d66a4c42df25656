"""The phases of a job that train a supernet: a search by gradients, and weights that its trials share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nas.data.problem import Problem
from nas.evaluate.cost_metrics import free_metrics
from nas.evaluate.inherited import Inherited, from_supernet
from nas.evaluate.trained import Start
from nas.files.atomic import read_json, write_json
from nas.files.schemas import NeededRecord, checked
from nas.oneshot import memory_budget
from nas.oneshot.diagnostics import DifferentiableOutcome, Epoch
from nas.oneshot.discretize import keeps_cap
from nas.oneshot.expected_cost import expected_cost
from nas.oneshot.methods import Method
from nas.oneshot.path_training import Sharing, train_shared
from nas.oneshot.search import search
from nas.oneshot.supernet import Supernet
from nas.results.result import Alphas
from nas.results.run_record import CHECKPOINT, SEARCH
from nas.run.black_box import alpha_seeds
from nas.run.final_network import default_of
from nas.run.job import Job, SearchOutcome, distinct
from nas.searchers.goals import Goals
from nas.searchers.scheduler import Listed
from nas.seeding import isolated, rng
from nas.show.tracking.tracker import Point, finite, of_epochs
from nas.space.cost import count_params
from nas.space.latency import LATENCY, LatencyTable, measure_table
from nas.space.space import Space
from nas.study.study import Study
from nas.study.workers import Evaluate
from nas.training.checkpoint import Checkpoints
from nas.training.memory_estimate import require_memory
from nas.training.retry import LR_FACTOR, Retry, with_retries
from nas.training.train import Control, EpochReport
from nas.types import Genotype, Trial
from nas.user_code import user_errors

SHARED = "shared weights"
"""What the training of a supernet for trials is called between ranks."""
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
    _require_memory(job)
    method, costs = _constrained(job), _costs(job)
    measured = Goals((job.problem.objective,))
    study = job.study(SEARCH, Listed((), 0), goals=measured, seed=0, announce=False)
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


def help_to_search(job: Job) -> None:
    """What the other ranks do while rank 0 searches; what it has measured before they read in the folder."""
    method = _within_memory(job, _constrained(job))
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
    # Epochs at another learning rate are trials before those of this attempt.
    before = sum(t.metrics.get(LR_FACTOR, 1.0) != retry.lr_factor for t in study.history)
    job.progress.phase(SEARCH, method.weights.epochs, done=len(study.history) - before)
    job.team.call(SEARCH)

    def record(epochs: Sequence[Epoch]) -> None:
        for epoch in epochs[len(study.history) - before :]:
            trial = Trial(len(study.history), epoch.genotype, fidelity=epoch.epochs)
            metrics = {**_metrics(epoch, job.problem.val), **costs(epoch.genotype), **retry.metrics}
            study.tell(trial, metrics, epoch.seconds)
            job.progress.advance(_line(epoch, job.problem), done=epoch.epoch)
            for event in epoch.events:
                job.progress.note(f"epoch {epoch.epoch}: {event}")
        Alphas.of(job.space, [epoch.strengths for epoch in epochs]).write(job.folder)
        told = enumerate(epochs, start=before + 1)
        job.tracking.tell(_point(study.name, job, epoch, number) for number, epoch in told)

    def left_s() -> float:
        assert until_s is not None
        return -1.0 if job.clock.late(until_s) else until_s - job.clock.elapsed_s

    best = alpha_seeds(job)
    outcome = search(
        job.space,
        job.search_task,
        replace(method, weights=retry.of(method.weights)),
        seed=job.seed(SEARCH),
        prepare=(lambda supernet: supernet.prefer(best)) if best else None,
        checkpoints=Checkpoints(retry.place(job.folder / CHECKPOINT / SEARCH)),
        left_s=None if until_s is None else left_s,
        on_epoch=record,
        stop=job.stop,
        team=job.team,
    )
    record(outcome.epochs)
    return outcome


# -- what it leads to --------------------------------------------------------------------------------


def _candidates(
    job: Job, method: Method, outcome: DifferentiableOutcome, costs: Callable[[Genotype], dict[str, float]]
) -> list[Genotype]:
    """What was preferred, and what is likely under the last strengths, by constraints and identities."""
    likely = _likely(job.space, outcome.strengths, rng(job.seed(SEARCH), "likely"))
    bounds, cap = job.plan.goals.constraints, method.identities

    def place(genotype: Genotype) -> tuple[float, bool]:
        known = costs(genotype)
        excess = sum(bound.excess(known) for bound in bounds)
        return excess, cap is not None and not keeps_cap(job.space, genotype, cap)

    return sorted(dict.fromkeys([*outcome.selected, *likely]), key=place)


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


# -- constraints and memory --------------------------------------------------------------------------


def _constrained(job: Job) -> Method:
    """The method with a penalty for each constraint, on the cost of the last network."""
    method, bounds = job.plan.method, job.plan.goals.constraints
    if not bounds:
        return method
    table = _table(job)
    shape, device = job.task.image_shape, job.search_task.train.x.device
    penalties = [
        expected_cost(job.final, shape, bound, table=table, weight=PENALTY, device=device) for bound in bounds
    ]
    return replace(method, regularizers=(*method.regularizers, *penalties))


def _costs(job: Job) -> Callable[[Genotype], dict[str, float]]:
    """What the constraints need to know of an architecture."""
    wanted, table = {bound.metric for bound in job.plan.goals.constraints}, _table(job)

    def costs(genotype: Genotype) -> dict[str, float]:
        found = free_metrics(job.final, genotype, job.task.image_shape, table) if wanted else {}
        return {name: value for name, value in found.items() if name in wanted}

    return costs


def _table(job: Job) -> LatencyTable | None:
    """The given latencies by option, or those of this device, measured once; None where nothing asks."""
    if all(bound.metric != LATENCY for bound in job.plan.goals.constraints):
        return None
    if job.latency_table is not None:
        return job.latency_table
    path = job.folder / "latency.json"
    if not path.exists():
        job.progress.note("measuring what each operation adds to the latency on this device")
        measure_table(job.final, job.task.image_shape, job.device).write(path)
    return LatencyTable.read(path)


def _within_memory(job: Job, method: Method) -> Method:
    """The method changed to fit the memory budget; a resumed run is changed as it was before."""
    if job.config.memory is None:
        return method
    path = job.folder / "memory.json"
    if not path.exists():
        job.progress.note("memory: a step is measured on a few images")
        fitting, needed = memory_budget.fit(
            job.space, job.search_task, method, job.config.memory, ranks=job.team.size, stop=job.stop
        )
        write_json(path, {**asdict(fitting), "needed": needed})
    record = read_json(path)
    change = checked(memory_budget.Change, record, path, "record of what fits the memory")
    needed = checked(NeededRecord, record, path, "record of what fits the memory").needed
    words = ", ".join(change.words(method)) or "nothing has to change"
    job.progress.note(
        f"memory: a step needs {memory_budget.gib(needed)} of {memory_budget.gib(job.config.memory)}; {words}"
    )
    return change.of(method)


def _require_memory(job: Job) -> None:
    """Refuses a supernet whose weights alone are too large, before any memory is taken."""
    with torch.device("meta"):
        require_memory(count_params(Supernet(job.space)), job.device)


# -- what is recorded --------------------------------------------------------------------------------


def _metrics(epoch: Epoch, name: str) -> dict[str, float]:
    """What is recorded of an epoch; numbers that were not measured are left out. name: of its score."""
    health = epoch.health
    found = {
        name: epoch.val_score,
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
    return {"epoch": epoch.epoch, **_metrics(epoch, "val_score"), "skip_shares": shares, "events": events}


def _line(epoch: Epoch, problem: Problem) -> str:
    health = epoch.health
    curvature = f", eigenvalue {health.eigenvalue:.2g}" if np.isfinite(health.eigenvalue) else ""
    gap = f", gap {health.gap:+.3f}" if np.isfinite(health.gap) else ""
    return (
        f"epoch {epoch.epoch}: supernet {problem.words} {problem.text(epoch.val_score)}, "
        f"loss {epoch.train_loss:.3f}, "
        f"skips {health.skip_share:.0%}{gap}{curvature}"
    )


def _point(series: str, job: Job, epoch: Epoch, number: int) -> Point:
    """What trackers are told of an epoch: its metrics, and the alphas by decision.

    number: of the epoch among all that were told; one that the search went back on counts.
    """
    options = {decision.name: decision.options for decision in job.space.decisions}
    values = {"epoch": float(epoch.epoch), "seconds": epoch.seconds, **_metrics(epoch, job.problem.val)}
    return Point(series, number, finite(values), dict(zip(options, epoch.strengths, strict=True)), options)


# -- weights that trials share -----------------------------------------------------------------------


def shared_weights(job: Job) -> tuple[Inherited, float]:
    """A trained supernet as an evaluator, and the seconds that its training took."""
    # A supernet's steps have passes of their own, so that nothing eases lack of memory.
    (supernet, seconds), _ = with_retries(
        lambda retry: _trained(job, retry),
        folder=job.folder / CHECKPOINT,
        batch=1,
        note=job.progress.note,
        alone=job.team.size == 1,
    )
    return Inherited(supernet, job.search_task, sharing_of(job).calibration), seconds


def _trained(job: Job, retry: Retry) -> tuple[Supernet, float]:
    supernet = _fresh_supernet(job)
    job.progress.phase("supernet", job.plan.supernet.epochs)
    job.team.call(SHARED)

    def told(report: EpochReport) -> None:
        job.progress.advance(str(report), done=report.epoch)
        job.tracking.tell(of_epochs(str(retry.place(Path("supernet"))), [report]))

    curve = train_shared(
        supernet,
        job.search_task,
        retry.of(job.plan.supernet),
        seed=job.seed("shared"),
        sampling=sharing_of(job).sampling,
        control=Control(
            checkpoints=Checkpoints(retry.place(job.folder / CHECKPOINT) / "supernet"),
            on_epoch=told,
            stop=job.stop,
            team=job.team,
        ),
    )
    return supernet, sum(curve.seconds)


def help_with_weights(job: Job) -> None:
    """What the other ranks do while rank 0 trains the shared weights."""
    supernet, sampling, seed = _fresh_supernet(job), sharing_of(job).sampling, job.seed("shared")
    with user_errors():
        train_shared(
            supernet,
            job.search_task,
            job.plan.supernet,
            seed=seed,
            sampling=sampling,
            control=Control(stop=job.stop, team=job.team),
        )


def sharing_of(job: Job) -> Sharing:
    """How the weights of the job's supernet are trained and used."""
    return job.plan.sharing or Sharing()


def _fresh_supernet(job: Job) -> Supernet:
    """The job's supernet with fresh weights."""
    _require_memory(job)
    with isolated(job.seed("supernet"), "init"):
        return Supernet(job.space).to(job.device)


def warm_start(measure: Evaluate | None) -> Start | None:
    """What a fresh training begins with: the weights of the trials' supernet; None where there is none."""
    if not isinstance(measure, Inherited):
        return None
    return from_supernet(measure.supernet)
