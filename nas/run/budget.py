"""What a job does in its time, planned backwards from the last training, which gets half of it or more.

A few steps are timed; the last network is as large as a training of some 2,200 steps or 28 epochs allows, and
the rest of the time searches, where a dozen trials of at least six epochs fit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch

from nas import devices
from nas.data.task import Task
from nas.errors import Stopped, TrialError, counted
from nas.files.atomic import write_json
from nas.results.run_record import CHECKPOINT, RETRAIN, SEARCH
from nas.run.final_network import default_of
from nas.run.job import Job
from nas.run.run_folder import EXPORT_S
from nas.run.step_timing import final_pace, network_pace, paced, search_pace, sized, threads
from nas.searchers.fidelity import Fidelity, Ladder
from nas.seeding import rng
from nas.space.cost import Cost, cost
from nas.space.space import Size
from nas.study.workers import at_a_time, gpus_of, places_on
from nas.training.evaluate import FORWARD
from nas.training.recipe import Recipe, compressed
from nas.types import Genotype
from nas.user_code import user_errors

BASELINES, FRESH, FINISH = "baselines", "re-evaluate", "write"
PHASES = (SEARCH, BASELINES, FRESH, RETRAIN, FINISH)
"""Of a job, in their order."""
LAST = 0.5
"""The least share of the time that the last training gets."""
TRIALS, EPOCHS = 12, 6
"""A search is worth its time from so many trials on, of so many epochs each."""
SHARED = 0.7
"""Of the time of a search on shared weights, for their training."""
SLACK = 0.1
"""Of what was planned, the last training included: by how much phases before it may be late before a cut."""
FINISH_S, PLAIN_S = 3.0, 1.0
"""Set aside for writing the result, with pictures and without."""
TESTED = 0.2
"""The largest share of a budget that is set aside for testing the last network."""
EXPORTED_S = 600.0
"""A budget that is at least as long has time set aside for the bundle."""
LIMIT_S, SHARE = 5.0, 0.05
"""Seconds that measuring takes at most, but for the step in progress; and of a budget."""
AUDITED, AUDIT_S, AUDIT_LEAST_S = 0.1, 0.008, 3.0
"""Share of the time that an audit may take; its seconds for an image, and for however few images."""
HOUR_S = 3600.0


@dataclass(frozen=True)
class BudgetPlan:
    """What a job does, and the seconds of each phase.

    seconds: by phase, of those that there are; empty where nobody wants to know.
    trials, epochs: of the search, `epochs` those of a trial or of a supernet; none where nothing is searched.
    final_step_s: of the last network. begins_s: when the plan was made, by the job's clock.
    limited: by a budget, so that its phases are cut.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    trials: int = 0
    epochs: float = 0
    final_step_s: float = 0.0
    begins_s: float = 0.0
    limited: bool = False

    @property
    def has_no_search(self) -> bool:
        """Whether there is no time for a search that would be worth it."""
        return self.limited and not self.epochs

    @property
    def reserve_s(self) -> float | None:
        """Kept for testing and writing within a budget; None without one."""
        return self.seconds.get(FINISH, 0.0) if self.limited else None

    @property
    def total_s(self) -> float:
        """Of the whole job, from its beginning."""
        return self.begins_s + sum(self.seconds.values())

    def until_s(self, phase: str) -> float | None:
        """When a phase is cut off, by the job's clock; never without a budget."""
        if not self.limited:
            return None
        before = PHASES[: PHASES.index(phase) + 1]
        planned_s = sum(self.seconds.get(name, 0.0) for name in before)
        return self.begins_s + planned_s + SLACK * (planned_s + self.seconds[RETRAIN])


Tell = Callable[["Preview"], bool]
"""Shows a preview; whether to go on."""


def plan_budget(job: Job, tell: Tell | None = None) -> tuple[Job, BudgetPlan]:
    """The job as its budget allows it, and its plan, which is told; an empty one where nobody wants to know.

    All that is measured is measured once in the life of a job.

    Raises:
        Stopped: when `tell` says not to go on.
    """
    if tell is None and job.clock.budget_s is None:
        return job, BudgetPlan()
    job, plan = _planned(job)

    def told() -> bool:
        found = _preview(job, plan)
        write_json(job.folder / "preview.json", found.to_dict())
        if tell is not None and not tell(found):
            raise Stopped("nothing was trained")
        if tell is None:
            for name, words, seconds in found.phases:
                job.progress.note(f"plan: {name}: {words}, {time_text(seconds)}")
        return True

    job.clock.decide("told", told)
    return job, plan


def preview(job: Job) -> Preview:
    """What a job would cost on its device; nothing is written."""
    return _preview(*_planned(job))


# -- the plan -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """Seconds of a step: of a trial in a process of one thread, of what is searched, of the last network."""

    trial: float
    search: float
    final: float


def _planned(job: Job) -> tuple[Job, BudgetPlan]:
    made = job.clock.decide("plan", lambda: asdict(planned(job, _timed(job), places=places_on(job.device))))
    plan = BudgetPlan(**made)
    if not plan.limited:
        return job, plan
    job, final_s = sized(applied(job, plan), typical(job), plan.seconds[RETRAIN])
    return job, replace(plan, final_step_s=final_s)


def planned(job: Job, steps: Steps, *, places: int) -> BudgetPlan:
    """All as it was asked for, or what fits into the budget. places: of trainings made side by side."""
    budget_s, begins_s = job.clock.budget_s, job.clock.elapsed_s
    testing_s = FORWARD * len(job.task.test) / job.recipe.batch * steps.final
    finish_s = FINISH_S if job.config.pictures else PLAIN_S
    if budget_s is None:
        plan, finish_s = unlimited(job, steps, places=places), finish_s + testing_s
    else:
        finish_s += EXPORT_S if job.config.export and budget_s >= EXPORTED_S else 0.0
        finish_s += min(testing_s, TESTED * budget_s)
        plan = divided(job, steps, max(0.0, budget_s - begins_s - finish_s), places=places)
    seconds = {**plan.seconds, FINISH: finish_s}
    return replace(plan, seconds=seconds, begins_s=begins_s, final_step_s=steps.final)


def unlimited(job: Job, steps: Steps, *, places: int) -> BudgetPlan:
    """Without a budget, all as it was asked for."""
    trials, epochs, compares = 0, 0.0, job.config.baselines and job.has_choice
    seconds = dict[str, float]()
    if job.has_choice:
        trials, epochs = _work_of(job)
        seconds[SEARCH] = search_s(job, steps, trials, epochs)
        if compares and not job.is_own_baseline:
            seconds[BASELINES] = seconds[SEARCH] / places
    if again := rerank_s(job, steps, places=places, compares=compares):
        seconds[FRESH] = again
    images = len(job.task.train) + len(job.task.val)
    seconds[RETRAIN] = job.recipe.epochs * max(1, images // job.recipe.batch) * steps.final
    return BudgetPlan(seconds, trials, epochs)


def divided(job: Job, steps: Steps, usable_s: float, *, places: int, last: float = LAST) -> BudgetPlan:
    """So many seconds: the last training first, and a search where one worth it fits beside it.

    places: of trainings that are made side by side. last: the least share of the last training.
    """
    for compares in (True, False) if job.config.baselines and not job.is_own_baseline else (False,):
        again_s = rerank_s(job, steps, places=places, compares=compares)
        longest_s = ((1 - last) * usable_s - again_s) / (1 + compares / places)
        if job.has_choice and (fitting := _fitted(job, steps, longest_s)) is not None:
            trials, epochs = fitting
            found_s = min(longest_s, search_s(job, steps, trials, epochs))
            parts = {SEARCH: found_s, BASELINES: compares * found_s / places, FRESH: again_s}
            seconds = {name: value for name, value in parts.items() if value}
            seconds[RETRAIN] = usable_s - sum(seconds.values())
            return BudgetPlan(seconds, trials, epochs, limited=True)
    return BudgetPlan({RETRAIN: usable_s}, limited=True)


def _fitted(job: Job, steps: Steps, seconds: float) -> tuple[int, int] | None:
    """Trials and epochs of a search that is worth its time; None where there is not enough of it."""
    plan, config = job.plan, job.config
    if plan.searcher is None or config.shares_weights:
        recipe = plan.supernet if plan.searcher is not None else plan.method.weights
        share = seconds if plan.searcher is None else SHARED * seconds
        epochs = min(recipe.epochs, int(share / max(1e-9, search_s(job, steps, 0, 1))))
        return (plan.trials, epochs) if epochs >= min(EPOCHS, recipe.epochs) else None
    wanted = min(TRIALS, config.trials or TRIALS)
    epochs = plan.ladder.granted[-1]
    while epochs > EPOCHS and _is_open(job) and search_s(job, steps, wanted, epochs) > seconds:
        epochs -= 1
    trials = int(seconds / max(1e-9, search_s(job, steps, 1, epochs)))
    return (min(trials, config.trials or trials), epochs) if trials >= wanted else None


def _is_open(job: Job) -> bool:
    """Whether the user has left the epochs of a trial open."""
    config = job.config
    fixed = config.epochs is not None or config.fidelity is not None or "epochs" in config.trial
    return not fixed and config.scheduler == "fixed" and job.plan.trial.epochs > EPOCHS


def applied(job: Job, found: BudgetPlan) -> Job:
    """The job with the trials and epochs of its plan; a supernet that has begun keeps its own."""
    plan, epochs = job.plan, int(found.epochs)
    if not epochs:
        return job
    if plan.searcher is not None and not job.config.shares_weights:
        ladder = Ladder((Fidelity(epochs),)) if _is_open(job) else plan.ladder
        return replace(job, plan=replace(plan, trials=found.trials, ladder=ladder))
    begun = (job.folder / CHECKPOINT).exists()
    epochs = job.clock.decide("epochs of a supernet", lambda: epochs, lasting=begun)
    if plan.searcher is None:
        plan = replace(plan, search=replace(plan.method, weights=shortened(plan.method.weights, epochs)))
    else:
        plan = replace(plan, supernet=shortened(plan.supernet, epochs))
    return replace(job, plan=plan)


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """Its schedule compressed, and by steps, as by few epochs it would end at a high rate."""
    return recipe if epochs == recipe.epochs else replace(compressed(recipe, epochs), schedule="step")


# -- seconds ------------------------------------------------------------------------------------------


def trial_s(job: Job, step_s: float, epochs: float) -> float:
    """Of a training of so many epochs with its validation."""
    batch = job.plan.trial.batch
    per_epoch = max(1, len(job.search_task.train) // batch)
    return (epochs * per_epoch + FORWARD * len(job.search_task.val) / batch) * step_s


def search_s(job: Job, steps: Steps, trials: int, epochs: float) -> float:
    """Of a search of so many trials; epochs are those of a trial, or of its supernet."""
    plan, images, val = job.plan, len(job.search_task.train), len(job.search_task.val)
    if plan.searcher is None:
        from nas.oneshot.diagnostics import monitoring_cost

        per_epoch = max(1, images // plan.method.weights.batch)
        first, later = (monitoring_cost(job.search_task, plan.method, first=first) for first in (True, False))
        return (epochs * (per_epoch + later) + first - later) * steps.search
    if job.config.shares_weights:
        batch = plan.supernet.batch
        return (epochs * max(1, images // batch) + trials * FORWARD * val / batch) * steps.search
    gpus = gpus_of(job.config.device) if job.device.type == "cuda" else []
    return trials * trial_s(job, steps.search, epochs) / at_a_time(job.config.workers, gpus)


def rerank_s(job: Job, steps: Steps, *, places: int, compares: bool) -> float:
    """Of the fresh trainings, `places` of them at a time; 0 where there are none."""
    networks = _networks_again(job, compares=compares)
    rounds = math.ceil(networks * job.plan.repeats / places)
    return rounds * trial_s(job, steps.trial, job.plan.top_k_epochs)


def _networks_again(job: Job, *, compares: bool) -> int:
    """How many networks are trained again: the best, the default, and what two baselines have chosen."""
    return 0 if job.plan.top_k == 1 and not compares else job.plan.top_k + 1 + 2 * compares


def allows_audit(task: Task, budget_s: float) -> bool:
    """Whether the images can be audited in a small share of the time."""
    images = len(task.train) + len(task.val) + len(task.test)
    return max(AUDIT_LEAST_S, AUDIT_S * images) <= AUDITED * budget_s


def _work_of(job: Job) -> tuple[int, float]:
    """Trials of the search as asked for, and epochs of each, or of their supernet."""
    plan = job.plan
    if plan.searcher is None:
        return 0, plan.method.weights.epochs
    if job.config.shares_weights:
        return plan.trials, plan.supernet.epochs
    # Epochs of full size that a trial takes on average: of `eta` on a rung one climbs.
    rungs = plan.ladder.rungs
    work = [r.epochs * r.images * r.width**2 * r.cells * r.image_size**2 for r in rungs]
    shares = [float(job.config.eta) ** -i for i in range(len(rungs))]
    added = [max(now - before, 0.0) for before, now in zip([0.0, *work], work, strict=False)]
    return plan.trials, sum(s * a for s, a in zip(shares, added, strict=True)) / sum(shares)


def typical(job: Job) -> Genotype:
    """An architecture to measure by."""
    default = default_of(job)
    return job.space.sample(rng(job.seed("preview"), "default")) if default is None else default


def _timed(job: Job) -> Steps:
    budget_s, genotype = job.clock.budget_s, typical(job)
    limit_s = 0.2 * (LIMIT_S if budget_s is None else min(LIMIT_S, SHARE * budget_s))

    def or_zero(pace: Callable[[], float]) -> float:
        try:
            return pace()
        except TrialError:  # the phase itself will say why
            return 0.0

    with threads(1 if places_on(job.device) > 1 else torch.get_num_threads()):
        trial_s = or_zero(
            lambda: network_pace(job.space, genotype, job.search_task, job.plan.trial, limit_s=limit_s)
        )
    alone = job.plan.searcher is None or job.config.shares_weights or job.config.workers in (0, 1)
    searching = partial(search_pace, job, genotype, limit_s=limit_s)
    final = partial(final_pace, job, genotype, limit_s=limit_s)
    search_s = paced(job, SEARCH, searching)[1] if alone and job.has_choice else trial_s
    return Steps(trial_s, search_s, or_zero(final) if budget_s is not None else paced(job, RETRAIN, final)[1])


# -- what is told -------------------------------------------------------------------------------------

SAMPLE = 50
"""Architectures that are counted."""
_SHOWN = (("params", "parameters", ""), ("macs", "MACs", ""), ("peak_bytes", "peak memory", "B"))


@dataclass(frozen=True)
class Preview:
    """What a search will cost.

    decisions, architectures: of the space; `exact` is False where they are estimated.
    ranges: the least and the most of params, macs and peak_bytes of the last network, over so many random
      architectures as `sample` says.
    memory_bytes: what training needs at least, counted.
    phases: in order, the name of each, what is planned, and its seconds. device: in words.
    """

    space: str
    decisions: int
    architectures: int
    exact: bool
    sample: int
    ranges: Mapping[str, tuple[float, float]]
    memory_bytes: int
    phases: tuple[tuple[str, str, float], ...]
    device: str

    @property
    def seconds(self) -> float:
        """Estimated, of the whole job."""
        return sum(seconds for _, _, seconds in self.phases)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        ranges = {name: {"low": low, "high": high} for name, (low, high) in self.ranges.items()}
        phases = [{"name": n, "planned": words, "seconds": s} for n, words, s in self.phases]
        return {**asdict(self), "ranges": ranges, "phases": phases, "seconds": self.seconds}

    def lines(self) -> list[str]:
        """A short table."""
        size = Size(self.architectures, self.exact)
        rows = [f"space        {self.space}: {counted(self.decisions, 'decision')}, {size} architectures"]
        rows += [
            f"{label:<13}{_span(*self.ranges[name], unit)}"
            for name, label, unit in _SHOWN
            if name in self.ranges
        ]
        rows.append(f"             over {counted(self.sample, 'random architecture')} at final size")
        rows.append(f"memory       training takes {_short(self.memory_bytes)}B at least")
        rows += [f"{name:<13}{words:<44} {time_text(seconds):>9}" for name, words, seconds in self.phases]
        rows.append(f"{'in all':<13}{'on ' + self.device:<44} {time_text(self.seconds):>9}, from timed steps")
        return rows


def _preview(job: Job, plan: BudgetPlan) -> Preview:
    """Counts a sample of architectures, and puts the plan into words."""
    counts = dict(_counted(job, until=time.perf_counter() + 0.2 * LIMIT_S))
    values = {name: [getattr(c, name) for c in counts.values()] for name in ("params", "macs", "peak_bytes")}
    # Weights, gradients, momentum and the activations of a batch.
    memory = (12 * c.params + job.recipe.batch * c.activation_bytes for c in counts.values())
    words = _words(job, plan)
    return Preview(
        job.space.name,
        len(job.space.decisions),
        job.space.size.count,
        job.space.size.exact,
        len(counts),
        {name: (min(found), max(found)) for name, found in values.items() if found},
        max(memory, default=0),
        tuple((name, words[name], plan.seconds[name]) for name in PHASES if name in plan.seconds),
        devices.describe(job.device),
    )


def _words(job: Job, found: BudgetPlan) -> dict[str, str]:
    """What is planned for each phase."""
    plan, trials = job.plan, counted(found.trials, "trial")
    if plan.searcher is None:
        search = f"{counted(plan.method.weights.epochs, 'epoch')} of a supernet"
    elif job.config.shares_weights:
        search = f"{counted(plan.supernet.epochs, 'epoch')} of a supernet, {trials}"
    elif len(plan.ladder) > 1:
        search = f"{trials}, on {plan.ladder}"
    else:
        search = f"{trials}, {counted(plan.ladder.granted[-1], 'epoch')} each"
    compares = BASELINES in found.seconds or (job.is_own_baseline and job.config.baselines)
    networks = counted(_networks_again(job, compares=compares), "network")
    images = len(job.task.train) + len(job.task.val)
    retrain = f"{counted(job.recipe.epochs, 'epoch')} of {counted(images, 'image')}"
    if found.limited:
        epochs = found.seconds[RETRAIN] / max(1e-9, found.final_step_s * max(1, images // job.recipe.batch))
        size = "".join(f", {name} {value}" for name, value in job.config.final_settings.items())
        retrain = f"about {counted(round(epochs), 'epoch')} in {job.recipe.precision}{size}"
        retrain = retrain if found.epochs else f"the default architecture: {retrain}"
    return {
        SEARCH: search,
        BASELINES: "random search at equal cost",
        FRESH: f"{networks}, {counted(plan.repeats, 'seed')}, {counted(plan.top_k_epochs, 'epoch')}",
        RETRAIN: retrain,
        FINISH: "test score, files and pictures",
    }


def _counted(job: Job, *, until: float) -> Iterator[tuple[Genotype, Cost]]:
    """The costs of some random architectures, of one at least; what cannot be built is left out."""
    draw = rng(job.seed("preview"), "sample")
    for number in range(SAMPLE):
        if number and time.perf_counter() >= until:
            return
        genotype = job.space.sample(draw)
        try:
            with user_errors():
                yield genotype, cost(job.final, genotype, job.task.image_shape)
        except TrialError:
            continue


def _span(low: float, high: float, unit: str) -> str:
    least, most = _short(low), _short(high)
    return f"{least}{unit}" if least == most else f"{least}{unit} to {most}{unit}"


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
