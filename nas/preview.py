"""What a search will cost: its space, its networks, and its phases, timed by a few real steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from nas.budget import EXPORT_S, EXPORTED_S, FINISH_S, Needs
from nas.cost import Cost, cost
from nas.errors import TrialError
from nas.fidelity import Fidelity
from nas.guard import user_errors
from nas.job import Job
from nas.latency import latencies
from nas.oneshot.differentiable import LOOKS
from nas.pace import gradient_pace, network_pace, shared_pace
from nas.seeding import isolated, rng
from nas.space import Space
from nas.types import Genotype
from nas.workers.slots import cores

SAMPLE, TIMED = 50, 3
"""Architectures that are counted, and trained for a few steps."""
LIMIT_S = 5.0
"""Seconds that measuring takes at most, but for the step in progress."""
SHARE = 0.05
"""Of a budget, that measuring may take."""
HOUR_S = 3600.0
MOST_BUSY, FINISH_SHARE = 4.0, 0.2
"""How much longer the writing may take on a busy machine, and its largest share of a budget."""


@dataclass(frozen=True)
class Range:
    """Of one quantity over a sample of architectures."""

    low: float
    high: float


@dataclass(frozen=True)
class Phase:
    """A phase of the job: what is planned, in words, and the seconds that it is estimated to take."""

    name: str
    planned: str
    seconds: float


@dataclass(frozen=True)
class Preview:
    """What a search will cost.

    decisions, architectures: of the space; `exact` is False where there are at least so many.
    sample: how many architectures the ranges are of; timed: how many of them were trained for a few steps.
    ranges: of params, macs, peak_bytes, latency_ms (the last network's) and of step_s (of a trial).
    memory_bytes: what training needs at least, counted.
    phases: in order. device: in words. measured_s: what the measuring took.
    training_s: one training of the re-evaluation.
    shared_step_s, search_step_s, final_step_s: seconds of a step of a supernet and of the last network.
    """

    space: str
    decisions: int
    architectures: int
    exact: bool
    sample: int
    timed: int
    ranges: Mapping[str, Range]
    memory_bytes: int
    phases: Sequence[Phase]
    device: str
    measured_s: float
    training_s: float = 0.0
    shared_step_s: float = 0.0
    search_step_s: float = 0.0
    final_step_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Estimated, of the whole job."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def needs(self) -> Needs:
        """The same for dividing a budget."""
        seconds = {phase.name: phase.seconds for phase in self.phases}
        return Needs(
            seconds[SEARCH],
            seconds.get(BASELINES, 0.0),
            seconds.get(RERANK, 0.0),
            seconds[RETRAIN],
            self.training_s,
            seconds[FINISH],
        )

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {**dataclasses.asdict(self), "seconds": self.seconds}

    def lines(self) -> list[str]:
        """A short table."""
        count = f"{self.architectures:,}" if self.architectures < 10**9 else f"{self.architectures:.1e}"
        least = "" if self.exact else "at least "
        rows = [f"space        {self.space}: {self.decisions} decisions, {least}{count} architectures"]
        rows += [
            f"{label:<13}{_span(self.ranges[name], unit)}"
            for name, label, unit in _SHOWN
            if name in self.ranges
        ]
        rows.append(f"             over {self.sample} random architectures, latency of {self.timed}")
        rows.append(f"memory       training takes {_short(self.memory_bytes)}B at least")
        rows += [
            f"{phase.name:<13}{phase.planned:<44} {time_text(phase.seconds):>9}" for phase in self.phases
        ]
        rows.append(
            f"{'in all':<13}{'on ' + self.device:<44} {time_text(self.seconds):>9}, from steps timed for "
            f"{self.measured_s:.1f} s"
        )
        return rows


SEARCH, BASELINES, RERANK, RETRAIN, FINISH = "search", "baselines", "re-evaluate", "retrain", "write"
_SHOWN = (
    ("params", "parameters", ""),
    ("macs", "MACs", ""),
    ("peak_bytes", "peak memory", "B"),
    ("latency_ms", "latency", " ms"),
)


def preview(job: Job, *, device: str) -> Preview:
    """Counts a sample of architectures, times a few steps of what will be trained, and adds up the phases.

    device: in words. Nothing is written, and nothing random of the job is touched.
    """
    began, computed = time.perf_counter(), time.process_time()
    budget_s = job.clock.budget_s
    limit_s = LIMIT_S if budget_s is None else min(LIMIT_S, SHARE * budget_s)

    def left_s() -> float:
        return limit_s - (time.perf_counter() - began)

    counted = _counted(job, lambda: left_s() > 0.8 * limit_s)
    timed = list(counted)[:TIMED]
    trial = _paces(
        timed,
        lambda g: network_pace(job.space, g, job.search_task, job.plan.trial, limit_s=0.1 * limit_s),
        lambda: left_s() > 0.6 * limit_s,
    )
    split = job.task.train_and_val()
    final = _paces(
        timed,
        lambda g: network_pace(job.final, g, job.task, job.recipe, split=split, limit_s=0.1 * limit_s),
        lambda: left_s() > 0.4 * limit_s,
    )
    search_step = shared_step = 0.0
    if job.plan.searcher is None and _searches(job):
        search_step = _or_zero(lambda: gradient_pace(job, limit_s=0.2 * limit_s))
    elif job.config.shares_weights:
        shared_step = _or_zero(lambda: shared_pace(job, limit_s=0.2 * limit_s))
    ranges = _ranges(counted) | _latency(job.final, job, timed[: len(final) or 1])
    if trial:
        ranges["step_s"] = Range(min(trial), max(trial))
    steps = _Steps(_mean(trial), _mean(final), search_step, shared_step)
    training_s = _training_s(job, steps)
    # What of its time the process was kept from computing, it will be kept from writing, too.
    busy = (time.perf_counter() - began) / max(time.process_time() - computed, 1e-3)
    finish_s = FINISH_S * min(max(busy, 1.0), MOST_BUSY)
    if budget_s is not None:
        finish_s = min(finish_s, max(FINISH_S, FINISH_SHARE * budget_s))
        finish_s += EXPORT_S if job.config.export and budget_s >= EXPORTED_S else 0.0
    return Preview(
        job.space.name,
        len(job.space.decisions),
        job.space.size.count,
        job.space.size.exact,
        len(counted),
        len(timed),
        ranges,
        _memory(job, counted),
        _phases(job, steps, training_s, finish_s),
        device,
        time.perf_counter() - began,
        training_s,
        shared_step,
        search_step,
        steps.final,
    )


@dataclass(frozen=True)
class _Steps:
    """Seconds of a step of a trial, of the last network, and of a supernet, searched or shared."""

    trial: float
    final: float
    search: float
    shared: float


def _searches(job: Job) -> bool:
    return not (job.space.size.exact and job.space.size.count == 1)


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


def _training_s(job: Job, steps: _Steps) -> float:
    per_epoch = max(1, len(job.search_task.train) // job.plan.trial.batch)
    validated = FORWARD * len(job.search_task.val) / job.plan.trial.batch
    return (job.plan.top_k_epochs * per_epoch + validated) * steps.trial


def _phases(job: Job, steps: _Steps, training_s: float, finish_s: float) -> list[Phase]:
    plan = job.plan
    planned, search_s = _search(job, steps)
    found = [Phase(SEARCH, planned, search_s)]
    compares = plan.baselines and _searches(job)
    is_own = job.config.method == "random" and plan.scheduler == "fixed"
    if compares and not is_own:
        found.append(Phase(BASELINES, "random search at equal cost", search_s))
    networks = plan.top_k + 2 * compares
    if networks > 1:
        words = f"{networks} networks, {plan.seeds} seeds, {plan.top_k_epochs} epochs"
        found.append(Phase(RERANK, words, networks * plan.seeds * training_s))
    images = len(job.task.train) + len(job.task.val)
    per_epoch = max(1, images // job.recipe.batch)
    seconds = job.recipe.epochs * per_epoch * steps.final
    found.append(Phase(RETRAIN, f"{job.recipe.epochs} epochs of {images:,} images", seconds))
    found.append(Phase(FINISH, "test accuracy, files and pictures", finish_s))
    return found


def _search(job: Job, steps: _Steps) -> tuple[str, float]:
    plan, images = job.plan, len(job.search_task.train)
    if not _searches(job):
        return "nothing: there is one architecture", 0.0
    if plan.searcher is None:
        epochs = plan.search.weights.epochs
        per_epoch = max(1, images // plan.search.weights.batch)
        looks = LOOKS + FORWARD * len(job.search_task.val) / plan.search.weights.batch
        return f"{epochs} epochs of a supernet", epochs * (per_epoch + looks) * steps.search
    if job.config.shares_weights:
        epochs = plan.shared.epochs
        per_epoch = max(1, images // plan.shared.batch)
        validated = plan.trials * steps.shared * FORWARD * len(job.search_task.val) / plan.shared.batch
        words = f"{epochs} epochs of a supernet, {plan.trials} trials"
        return words, epochs * per_epoch * steps.shared + validated
    epochs_each = _epochs(plan.ladder.rungs, plan.eta)
    per_epoch = max(1, images // plan.trial.batch)
    workers = cores() if job.config.workers == "auto" else job.config.workers
    validated = FORWARD * len(job.search_task.val) / plan.trial.batch
    seconds = plan.trials * (epochs_each * per_epoch + validated) * steps.trial / workers
    count = "trials" if plan.planned_trials is None else f"{plan.trials} trials"
    each = f"{plan.ladder.granted[-1]} epochs each" if len(plan.ladder) == 1 else f"on {plan.ladder}"
    return f"{count}, {each}", seconds


FORWARD = 0.4
"""Of a step, that evaluating as many images takes."""


def _epochs(rungs: Sequence[Fidelity], eta: int) -> float:
    """Epochs of full size that a trial takes on average: of `eta` on a rung one climbs."""
    shares = [float(eta) ** -i for i in range(len(rungs))]
    work = [r.epochs * r.images * r.width**2 * r.cells * r.image_size**2 for r in rungs]
    added = [now - before for before, now in zip([0.0, *work], work, strict=False)]
    return sum(s * max(a, 0.0) for s, a in zip(shares, added, strict=True)) / sum(shares)


def _span(found: Range, unit: str) -> str:
    low, high = _short(found.low), _short(found.high)
    return f"{low}{unit}" if low == high else f"{low}{unit} to {high}{unit}"


def _short(value: float) -> str:
    """Three digits and k, M or G."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:.3g}"


def time_text(seconds: float) -> str:
    """`45 s`, `12 min` or `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:.1f} h"


def comparison(estimated_s: float, took_s: float) -> str:
    """The estimate beside what it took."""
    off = abs(took_s / estimated_s - 1) if estimated_s else 0.0
    more = "longer" if took_s >= estimated_s else "less"
    return f"the job took {time_text(took_s)}, estimated were {time_text(estimated_s)}: {off:.0%} {more}"
