"""What a job will do in its time: a few steps are timed, its phases planned, said, and set."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from nas import devices
from nas.data.task import Task
from nas.errors import Stopped, TrialError
from nas.files.atomic import write_json
from nas.oneshot.search import looks
from nas.run.black_box import default_of
from nas.run.cost_estimate import BASELINES, FINISH, RERANK, RETRAIN, SEARCH, Phase, Preview, Range, time_text
from nas.run.job import Job
from nas.run.step_timing import final_pace, network_pace, paced, search_pace, sized, threads
from nas.searchers.fidelity import Fidelity, Ladder
from nas.seeding import isolated, rng
from nas.space.cost import Cost, cost
from nas.space.latency import latencies
from nas.study.local_processes import cores, places_on
from nas.text import counted
from nas.training.evaluate import FORWARD
from nas.training.recipe import Recipe, compressed
from nas.types import Genotype
from nas.user_code import user_errors

START_S = 4.0
"""Until processes that train side by side have begun."""


@dataclass(frozen=True)
class Steps:
    """Seconds of a step.

    trial: of a trial by one thread; alone: by as many as suit it. supernet: searched or shared. final: of the
    last network.
    """

    trial: float
    alone: float
    supernet: float
    final: float


def of_trial(job: Job, step_s: float, epochs: float) -> float:
    """Seconds of a training of so many epochs with its validation."""
    batch = job.plan.trial.batch
    per_epoch = max(1, len(job.search_task.train) // batch)
    return (epochs * per_epoch + FORWARD * len(job.search_task.val) / batch) * step_s


def of_search(job: Job, steps: Steps, trials: int, epochs: float) -> float:
    """Seconds of a search of so many trials; epochs are those of a trial, or of its supernet."""
    plan, images, val = job.plan, len(job.search_task.train), len(job.search_task.val)
    if plan.searcher is None:
        per_epoch = max(1, images // plan.search.weights.batch)
        first, later = (looks(job.search_task, plan.search, first=first) for first in (True, False))
        return (epochs * (per_epoch + later) + first - later) * steps.supernet
    if job.config.shares_weights:
        batch = plan.shared.batch
        return (epochs * max(1, images // batch) + trials * FORWARD * val / batch) * steps.supernet
    workers = cores() if job.config.workers == "auto" else max(1, job.config.workers)
    return trials * of_trial(job, steps.alone, epochs) / workers


def rerank_s(job: Job, steps: Steps, *, places: int, compares: bool) -> float:
    """Seconds of the fresh trainings, `places` of them at a time; 0 where there are none."""
    networks = networks_again(job, compares=compares)
    rounds = math.ceil(networks * job.plan.seeds / places)
    start_s = START_S if places > 1 and networks and not compares else 0.0
    return rounds * of_trial(job, steps.trial, job.plan.top_k_epochs) + start_s


def networks_again(job: Job, *, compares: bool) -> int:
    """How many networks are trained again: the best, the default, and what two baselines have chosen."""
    return 0 if job.plan.top_k == 1 and not compares else job.plan.top_k + 1 + 2 * compares


def testing_s(job: Job, step_s: float) -> float:
    """Seconds that testing the last network takes, of which a step of its training takes so long."""
    return FORWARD * len(job.task.test) / job.recipe.batch * step_s


def phases_of(job: Job, steps: Steps, *, places: int, finish_s: float) -> list[Phase]:
    """All phases in order, without a budget. finish_s: what the last of them takes beside the test."""
    plan = job.plan
    found, search_s = [], 0.0
    if job.has_choice:
        trials, epochs = work_of(job)
        search_s = of_search(job, steps, trials, epochs)
        found.append(Phase(SEARCH, describe(job, trials), search_s))
    compares = plan.baselines and job.has_choice
    if compares and not job.is_own_baseline:
        found.append(Phase(BASELINES, "random search at equal cost", START_S + search_s / places))
    if networks := networks_again(job, compares=compares):
        seconds = rerank_s(job, steps, places=places, compares=compares)
        found.append(Phase(RERANK, again(job, networks), seconds))
    images = len(job.task.train) + len(job.task.val)
    seconds = job.recipe.epochs * max(1, images // job.recipe.batch) * steps.final
    words = f"{counted(job.recipe.epochs, 'epoch')} of {counted(images, 'image')}"
    return [*found, Phase(RETRAIN, words, seconds), last_phase(job, steps, finish_s)]


def last_phase(job: Job, steps: Steps, finish_s: float) -> Phase:
    """What comes after the last training."""
    return Phase(FINISH, "test accuracy, files and pictures", testing_s(job, steps.final) + finish_s)


def again(job: Job, networks: int) -> str:
    """The fresh trainings in words."""
    each = f"{counted(job.plan.seeds, 'seed')}, {counted(job.plan.top_k_epochs, 'epoch')}"
    return f"{counted(networks, 'network')}, {each}"


def work_of(job: Job) -> tuple[int, float]:
    """Trials of the search as planned, and epochs of each, or of their supernet."""
    plan = job.plan
    if plan.searcher is None:
        return 0, plan.search.weights.epochs
    return plan.trials, plan.shared.epochs if job.config.shares_weights else _epochs(
        plan.ladder.rungs, plan.eta
    )


def describe(job: Job, trials: int) -> str:
    """The search in words."""
    plan, count = job.plan, counted(trials, "trial")
    if plan.searcher is None:
        return f"{counted(plan.search.weights.epochs, 'epoch')} of a supernet"
    if job.config.shares_weights:
        return f"{counted(plan.shared.epochs, 'epoch')} of a supernet, {count}"
    if len(plan.ladder) > 1:
        return f"{count}, on {plan.ladder}"
    return f"{count}, {counted(plan.ladder.granted[-1], 'epoch')} each"


def _epochs(rungs: Sequence[Fidelity], eta: int) -> float:
    """Epochs of full size that a trial takes on average: of `eta` on a rung one climbs."""
    shares = [float(eta) ** -i for i in range(len(rungs))]
    work = [r.epochs * r.images * r.width**2 * r.cells * r.image_size**2 for r in rungs]
    added = [now - before for before, now in zip([0.0, *work], work, strict=False)]
    return sum(s * max(a, 0.0) for s, a in zip(shares, added, strict=True)) / sum(shares)


LAST = 0.5
"""The least share of the time that the last training gets."""
TRIALS, EPOCHS = 12, 6
"""A search is worth its time from so many trials on, of so many epochs each."""
SHARED = 0.7
"""Of the time of a search on shared weights, for their training."""
SLACK = 0.1
"""Of what was planned, the last training included: by how much phases before it may be late before a cut."""
AUDITED, AUDIT_S, AUDIT_PAIRS = 0.1, 0.004, 20_000
"""Share of the time that an audit may take; its seconds for an image; so many images take twice as long."""
AUDIT_LEAST_S = 3.0
"""Of an audit of however few images: its networks are trained for a least number of steps."""


@dataclass(frozen=True)
class Allocation:
    """What fits into a budget.

    trials, epochs: of the search, `epochs` those of a trial or of a supernet; none where nothing is searched.
    search_s, baselines_s, rerank_s: seconds of the phases; 0 for one that is left out.
    last_s: seconds of the last training.
    """

    last_s: float
    trials: int = 0
    epochs: int = 0
    search_s: float = 0.0
    baselines_s: float = 0.0
    rerank_s: float = 0.0


def allocate(job: Job, steps: Steps, usable_s: float, *, places: int) -> Allocation:
    """Divides so many seconds. places: of trainings that are made side by side."""
    rest_s = (1 - LAST) * usable_s
    for compares in (True, False) if job.plan.baselines and not job.is_own_baseline else (False,):
        again_s = rerank_s(job, steps, places=places, compares=compares)
        search_s = (rest_s - again_s) / (1 + compares / places)
        if job.has_choice and (found := _fitted(job, steps, search_s)) is not None:
            trials, epochs = found
            search_s = min(search_s, of_search(job, steps, trials, epochs))
            beside_s = compares * search_s / places
            last_s = usable_s - search_s - beside_s - again_s
            return Allocation(last_s, trials, epochs, search_s, beside_s, again_s)
    return Allocation(usable_s)


def _fitted(job: Job, steps: Steps, seconds: float) -> tuple[int, int] | None:
    """Trials and epochs of a search that is worth its time; None where there is not enough of it."""
    plan, config = job.plan, job.config
    if plan.searcher is None or config.shares_weights:
        recipe = plan.shared if plan.searcher is not None else plan.search.weights
        share = seconds if plan.searcher is None else SHARED * seconds
        epochs = min(recipe.epochs, int(share / max(1e-9, of_search(job, steps, 0, 1))))
        return (plan.trials, epochs) if epochs >= min(EPOCHS, recipe.epochs) else None
    wanted = min(TRIALS, config.trials or TRIALS)
    epochs = plan.ladder.granted[-1]
    while epochs > EPOCHS and _is_free(job) and of_search(job, steps, wanted, epochs) > seconds:
        epochs -= 1
    trials = int(seconds / max(1e-9, of_search(job, steps, 1, epochs)))
    return (min(trials, config.trials or trials), epochs) if trials >= wanted else None


def _is_free(job: Job) -> bool:
    """Whether the user has left the epochs of a trial open."""
    config = job.config
    fixed = config.epochs is not None or config.fidelity is not None or "epochs" in config.trial
    return not fixed and config.scheduler == "fixed" and job.plan.trial.epochs > EPOCHS


def applied(job: Job, found: Allocation) -> Job:
    """The job with the trials and epochs of an allocation."""
    plan = job.plan
    if not found.epochs:
        return job
    if plan.searcher is None:
        weights = shortened(plan.search.weights, found.epochs)
        return dataclasses.replace(
            job, plan=dataclasses.replace(plan, search=dataclasses.replace(plan.search, weights=weights))
        )
    if job.config.shares_weights:
        return dataclasses.replace(
            job, plan=dataclasses.replace(plan, shared=shortened(plan.shared, found.epochs))
        )
    ladder = Ladder((Fidelity(found.epochs),)) if _is_free(job) else plan.ladder
    return dataclasses.replace(job, plan=dataclasses.replace(plan, trials=found.trials, ladder=ladder))


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """Its schedule compressed, and by steps, as by few epochs it would end at a high rate."""
    return (
        recipe
        if epochs == recipe.epochs
        else dataclasses.replace(compressed(recipe, epochs), schedule="step")
    )


def allows_audit(task: Task, budget_s: float) -> bool:
    """Whether the images can be audited in a small share of the time."""
    count = sum(len(split) for split in (task.train, task.val, task.test))
    pixels = task.image_shape[1] * task.image_shape[2]
    expected_s = AUDIT_S * count * (1 + count / AUDIT_PAIRS) * max(1.0, pixels / 28**2)
    return max(AUDIT_LEAST_S, expected_s) <= AUDITED * budget_s


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
