"""What a job will do in its time: a few steps are timed, its phases planned, said, and set."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from nas import devices
from nas.errors import Stopped, TrialError
from nas.files.atomic import write_json
from nas.run.allocation import SLACK, Allocation, allocate, applied
from nas.run.black_box import default_of
from nas.run.cost_estimate import BASELINES, RERANK, RETRAIN, SEARCH, Phase, Preview, Range, time_text
from nas.run.job import Job
from nas.run.phases import Steps, again, describe, last_phase, networks_again, phases_of, testing_s
from nas.run.sizing import sized
from nas.run.step_timing import final_pace, network_pace, search_pace
from nas.run.threads import paced, threads
from nas.seeding import isolated, rng
from nas.space.cost import Cost, cost
from nas.space.latency import latencies
from nas.study.local import places_on
from nas.text import counted
from nas.types import Genotype
from nas.user_code import user_errors

FILE = "preview.json"
SAMPLE, TIMED = 50, 3
"""Architectures that are counted, and whose latency is measured."""
LIMIT_S, SHARE = 5.0, 0.05
"""Seconds that measuring takes at most, but for the step in progress; and of a budget."""
FINISH_S, PLAIN_S = 3.0, 1.0
"""Set aside for writing the result, with pictures and without."""
MOST_BUSY, FINISH_SHARE = 4.0, 0.2
"""How much longer the writing may take on a busy machine, and its largest share of a budget."""
EXPORT_S, EXPORTED_S = 30.0, 600.0
"""Set aside for the bundle, where a budget is at least as long as the second; else there is none."""

Tell = Callable[[Preview], bool]
"""Shows a preview; whether to go on."""


@dataclass(frozen=True)
class Forecast:
    """What a job is going to do.

    seconds: of the whole job, from its beginning; spent_s: of them, what it had taken by then.
    reserve_s: kept for testing and writing. allocation: of a budget, from `now_s` of the job's clock on.
    """

    seconds: float
    spent_s: float
    reserve_s: float
    now_s: float
    allocation: Allocation | None

    def until_s(self, *phases: str) -> float | None:
        """When the last of some phases is cut off, by the job's clock; never without a budget."""
        if self.allocation is None:
            return None
        planned_s = sum(float(getattr(self.allocation, f"{name}_s")) for name in phases)
        return self.now_s + planned_s + SLACK * (planned_s + self.allocation.last_s)


def foresee(job: Job, tell: Tell | None) -> tuple[Job, Forecast | None]:
    """The job as its budget allows it, and the forecast; None where nobody wants to know.

    All that is measured is measured once in the life of a job.

    Raises:
        Stopped: when `tell` says not to go on.
    """
    if tell is None and job.clock.budget_s is None:
        return job, None
    job, made, steps = _planned(job)

    def told() -> list[float]:
        found = _preview(job, made, steps)
        spent_s = job.clock.elapsed_s  # without the time that it takes somebody to answer
        write_json(job.folder / FILE, found.to_dict())
        if tell is not None and not tell(found):
            raise Stopped("nothing was trained")
        if tell is None:
            for phase in found.phases:
                job.progress.note(f"plan: {phase.name}: {phase.planned}, {time_text(phase.seconds)}")
        return [spent_s, spent_s + found.seconds]

    spent_s, seconds = job.clock.decide("forecast", told)
    seconds = min(seconds, job.clock.budget_s or math.inf)
    return job, dataclasses.replace(made, spent_s=spent_s, seconds=seconds)


def preview(job: Job) -> Preview:
    """What a job would cost on its device; nothing is written."""
    return _preview(*_planned(job))


def _planned(job: Job) -> tuple[Job, Forecast, Steps]:
    clock, places = job.clock, places_on(job.task.train.x.device)
    measured = dict(clock.decide("steps", lambda: _timed(job), lasting=True))
    busy, steps = measured.pop("busy"), Steps(**measured)
    if clock.budget_s is None:
        return job, Forecast(0.0, 0.0, FINISH_S * busy, 0.0, None), steps
    budget_s, plain_s = clock.budget_s, FINISH_S if job.config.pictures else PLAIN_S

    def divide() -> dict[str, object]:
        finish_s = min(plain_s * busy, max(plain_s, FINISH_SHARE * budget_s))
        bundle_s = EXPORT_S if job.config.export and budget_s >= EXPORTED_S else 0.0
        reserve_s = finish_s + bundle_s + min(testing_s(job, steps.final), FINISH_SHARE * budget_s)
        now_s = clock.elapsed_s
        found = allocate(job, steps, max(0.0, budget_s - now_s - reserve_s), places=places)
        return {"allocation": dataclasses.asdict(found), "reserve_s": reserve_s, "now_s": now_s}

    divided = clock.decide("allocation", divide)
    allocation = Allocation(**divided["allocation"])
    job, final_s = sized(applied(job, allocation), _default(job), allocation.last_s)
    made = Forecast(0.0, 0.0, divided["reserve_s"], divided["now_s"], allocation)
    return job, made, dataclasses.replace(steps, final=final_s)


def _default(job: Job) -> Genotype:
    """An architecture to measure by."""
    default = default_of(job)
    return job.space.sample(rng(job.seed("preview"), "default")) if default is None else default


def _timed(job: Job) -> dict[str, float]:
    """The seconds of the steps, and by how much longer than it computes the process is at it."""
    began, computed = time.perf_counter(), time.process_time()
    budget_s, genotype = job.clock.budget_s, _default(job)
    limit_s = 0.2 * (LIMIT_S if budget_s is None else min(LIMIT_S, SHARE * budget_s))

    def trial() -> float:
        return network_pace(job.space, genotype, job.search_task, job.plan.trial, limit_s=limit_s)

    with threads(1 if places_on(job.task.train.x.device) > 1 else torch.get_num_threads()):
        trial_s = _or_zero(trial)
    searching = partial(search_pace, job, genotype, limit_s=limit_s)
    alone_s = paced(job, SEARCH, searching)[1] if job.has_choice else 0.0
    final = partial(final_pace, job, genotype, limit_s=limit_s)
    final_s = _or_zero(final) if budget_s is not None else paced(job, RETRAIN, final)[1]
    # What of its time the process was kept from computing, it will be kept from writing, too.
    busy = (time.perf_counter() - began) / max(time.process_time() - computed, 1e-3)
    steps = dataclasses.asdict(Steps(trial_s, alone_s, alone_s, final_s))
    return {**steps, "busy": min(max(busy, 1.0), MOST_BUSY)}


def _or_zero(pace: Callable[[], float]) -> float:
    """What could not be trained has no pace; the job itself will say why."""
    try:
        return pace()
    except TrialError:
        return 0.0


# -- what is told -------------------------------------------------------------------------------------


def _preview(job: Job, made: Forecast, steps: Steps) -> Preview:
    """Counts a sample of architectures, and adds up the phases."""
    began, device = time.perf_counter(), job.task.train.x.device
    counts = _counted(job, lambda: time.perf_counter() - began < 0.2 * LIMIT_S)
    timed = list(counts)[:TIMED]
    places = places_on(device)
    finish_s = made.reserve_s
    if made.allocation is None:
        phases = phases_of(job, steps, places=places, finish_s=finish_s)
    else:
        phases = [*_allotted(job, made.allocation, steps), last_phase(job, steps, finish_s)]
    return Preview(
        job.space.name,
        len(job.space.decisions),
        job.space.size.count,
        job.space.size.exact,
        len(counts),
        len(timed),
        _ranges(counts) | _latency(job, timed),
        _memory(job, counts),
        phases,
        devices.describe(device),
    )


def _allotted(job: Job, found: Allocation, steps: Steps) -> list[Phase]:
    """The phases of a budget."""
    images = len(job.task.train) + len(job.task.val)
    count = found.last_s / max(1e-9, steps.final * max(1, images // job.recipe.batch))
    size = ", ".join(f"{name} {value}" for name, value in job.config.final_settings.items())
    words = f"about {counted(round(count), 'epoch')} in {job.recipe.precision}{f', {size}' if size else ''}"
    compares = found.baselines_s > 0 or job.is_own_baseline
    phases = [Phase(SEARCH, describe(job, found.trials), found.search_s)] if found.epochs else []
    if found.baselines_s:
        phases.append(Phase(BASELINES, "random search at equal cost", found.baselines_s))
    if found.rerank_s:
        phases.append(Phase(RERANK, again(job, networks_again(job, compares=compares)), found.rerank_s))
    what = "" if found.epochs else "the default architecture: "
    return [*phases, Phase(RETRAIN, what + words, found.last_s)]


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


def _ranges(counts: Mapping[Genotype, Cost]) -> dict[str, Range]:
    names = ("params", "macs", "peak_bytes") if counts else ()
    values = {name: [getattr(c, name) for c in counts.values()] for name in names}
    return {name: Range(min(found), max(found)) for name, found in values.items()}


def _latency(job: Job, genotypes: list[Genotype]) -> dict[str, Range]:
    x = job.task.normalise(job.task.train.x[:1])
    try:
        with user_errors(), isolated(0, "preview"):
            networks = [job.final.network(genotype).to(x.device) for genotype in genotypes]
            found = [timed.p50_ms for timed in latencies(networks, x, repeats=5, warmup=2)]
    except TrialError:
        return {}
    return {"latency_ms": Range(min(found), max(found))} if found else {}


def _memory(job: Job, counts: Mapping[Genotype, Cost]) -> int:
    """Weights, gradients, momentum and the activations of a batch, of the largest last network sampled."""
    needed = (12 * c.params + job.recipe.batch * c.activation_bytes for c in counts.values())
    return max(needed, default=0)
