"""The preview of a job: a sample of architectures is counted, and some are trained for a few steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from nas.budget.pace import gradient_pace, network_pace, shared_pace
from nas.budget.preview import Preview, Range
from nas.budget.preview_phases import Steps, one_training_s, phases_of, testing_s
from nas.budget.shares import EXPORT_S, EXPORTED_S, FINISH_S
from nas.cost import Cost, cost
from nas.errors import TrialError
from nas.job.job import Job
from nas.latency import latencies
from nas.seeding import isolated, rng
from nas.space import Space
from nas.types import Genotype
from nas.user_code import user_errors

SAMPLE, TIMED = 50, 3
"""Architectures that are counted, and trained for a few steps."""
LIMIT_S = 5.0
"""Seconds that measuring takes at most, but for the step in progress."""
SHARE = 0.05
"""Of a budget, that measuring may take."""
MOST_BUSY, FINISH_SHARE = 4.0, 0.2
"""How much longer the writing may take on a busy machine, and its largest share of a budget."""


def preview(job: Job, *, device: str) -> Preview:
    """Counts a sample of architectures, times a few steps of what will be trained, and adds up the phases.

    device: in words. Nothing is written, and nothing random of the job is touched.
    """
    began, computed = time.perf_counter(), time.process_time()
    budget_s = job.clock.budget_s
    limit_s = LIMIT_S if budget_s is None else min(LIMIT_S, SHARE * budget_s)

    def left() -> float:
        return 1 - (time.perf_counter() - began) / limit_s

    counted = _counted(job, lambda: left() > 0.8)
    trial, final = _network_paces(job, list(counted)[:TIMED], left, limit_s=0.1 * limit_s)
    search_step, shared_step = _supernet_paces(job, limit_s=0.2 * limit_s)
    timed = list(counted)[: len(final) or 1]
    ranges = _ranges(counted) | _latency(job.final, job, timed)
    if trial:
        ranges["step_s"] = Range(min(trial), max(trial))
    steps = Steps(_mean(trial), _mean(final), search_step, shared_step)
    training_s = one_training_s(job, steps)
    # What of its time the process was kept from computing, it will be kept from writing, too.
    busy = (time.perf_counter() - began) / max(time.process_time() - computed, 1e-3)
    finish_s = _finish_s(busy, budget_s, exports=job.config.export)
    return Preview(
        job.space.name,
        len(job.space.decisions),
        job.space.size.count,
        job.space.size.exact,
        len(counted),
        len(timed),
        ranges,
        _memory(job, counted),
        phases_of(job, steps, training_s, finish_s),
        device,
        time.perf_counter() - began,
        training_s,
        shared_step,
        search_step,
        steps.final,
        testing_s(job, steps.final),
    )


def _network_paces(
    job: Job, genotypes: Sequence[Genotype], left: Callable[[], float], *, limit_s: float
) -> tuple[list[float], list[float]]:
    """Seconds of a step of each architecture as a trial, and as the last network, while there is time."""
    split = job.task.train_and_val()
    trial = _paces(
        genotypes,
        lambda g: network_pace(job.space, g, job.search_task, job.plan.trial, limit_s=limit_s),
        lambda: left() > 0.6,
    )
    final = _paces(
        genotypes,
        lambda g: network_pace(job.final, g, job.task, job.recipe, split=split, limit_s=limit_s),
        lambda: left() > 0.4,
    )
    return trial, final


def _supernet_paces(job: Job, *, limit_s: float) -> tuple[float, float]:
    """Seconds of a step of a supernet searched by gradients, and of one that trials share; 0 for none."""
    if job.plan.searcher is None and job.has_choice:
        return _or_zero(lambda: gradient_pace(job, limit_s=limit_s)), 0.0
    if job.config.shares_weights:
        return 0.0, _or_zero(lambda: shared_pace(job, limit_s=limit_s))
    return 0.0, 0.0


def _finish_s(busy: float, budget_s: float | None, *, exports: bool) -> float:
    """Seconds to set aside for the writing, on a machine where everything takes `busy` times as long."""
    needed_s = FINISH_S * min(max(busy, 1.0), MOST_BUSY)
    if budget_s is None:
        return needed_s
    bundle_s = EXPORT_S if exports and budget_s >= EXPORTED_S else 0.0
    return min(needed_s, max(FINISH_S, FINISH_SHARE * budget_s)) + bundle_s


def _counted(job: Job, goes_on: Callable[[], bool]) -> dict[Genotype, Cost]:
    """The costs of some random architectures, of one at least; what cannot be built is left out."""
    draw, found = rng(job.seed("preview"), "sample"), dict[Genotype, Cost]()
    for number in range(SAMPLE):
        if number and not goes_on():
            break
        genotype = job.space.sample(draw)
        try:
            with user_errors():
                found[genotype] = cost(job.final, genotype, job.task.image_shape)
        except TrialError:
            continue
    return found


def _paces(
    genotypes: Sequence[Genotype], pace: Callable[[Genotype], float], goes_on: Callable[[], bool]
) -> list[float]:
    found = list[float]()
    for number, genotype in enumerate(genotypes):
        if number and not goes_on():
            break
        if seconds := _or_zero(partial(pace, genotype)):
            found.append(seconds)
    return found


def _or_zero(pace: Callable[[], float]) -> float:
    """What could not be trained has no pace; the job itself will say why."""
    try:
        return pace()
    except TrialError:
        return 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _ranges(counted: Mapping[Genotype, Cost]) -> dict[str, Range]:
    names = ("params", "macs", "peak_bytes") if counted else ()
    values = {name: [getattr(c, name) for c in counted.values()] for name in names}
    return {name: Range(min(found), max(found)) for name, found in values.items()}


def _latency(space: Space, job: Job, genotypes: Sequence[Genotype]) -> dict[str, Range]:
    if not genotypes:
        return {}
    x = job.task.normalise(job.task.train.x[:1])
    try:
        with user_errors(), isolated(0, "preview"):
            networks = [space.network(genotype).to(x.device) for genotype in genotypes]
            found = [timed.p50_ms for timed in latencies(networks, x, repeats=5, warmup=2)]
    except TrialError:
        return {}
    return {"latency_ms": Range(min(found), max(found))}


def _memory(job: Job, counted: Mapping[Genotype, Cost]) -> int:
    """Weights, gradients, momentum and the activations of a batch, of the largest last network sampled."""
    needed = (12 * c.params + job.recipe.batch * c.activation_bytes for c in counted.values())
    return max(needed, default=0)
