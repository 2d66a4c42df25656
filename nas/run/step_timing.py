"""How fast this device trains: a few real steps, timed and thrown away."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from nas import devices
from nas.data.task import Split, Task
from nas.errors import NasError, Stopped, TrialError
from nas.evaluate.cost_metrics import COUNTED, free_metrics
from nas.results.run_record import RETRAIN, SEARCH
from nas.run.final_network import default_of, final_space
from nas.run.job import Job
from nas.seeding import isolated, rng
from nas.space.space import Space
from nas.training.recipe import Recipe
from nas.training.train import train
from nas.types import Genotype
from nas.user_code import user_errors

STEPS = 2
"""That are timed, unless otherwise said."""


class Meter:
    """Asked before every step, whether to stop: times them and ends a training after a few.

    limit_s: a first step that takes as long is the only one. steps: that are timed, after one that warms up.
    """

    def __init__(self, device: torch.device, limit_s: float, steps: int = STEPS) -> None:
        self._device, self._limit_s, self._steps = device, limit_s, steps
        self._marks: list[float] = []

    def __call__(self) -> bool:
        """Notes the time; whether there were enough steps."""
        devices.synchronise(self._device)
        self._marks.append(time.perf_counter())
        steps = len(self._marks) - 1
        return steps > self._steps or (steps > 0 and self._marks[-1] - self._marks[0] >= self._limit_s)

    def measure(self, training: Callable[[], object]) -> float:
        """Seconds of a step of a training that stops when this says so."""
        try:
            training()
        except Stopped:
            pass
        else:  # it had no more steps
            self()
        seconds = [after - before for before, after in zip(self._marks, self._marks[1:], strict=False)]
        timed = seconds[1:] or seconds
        return sum(timed) / len(timed)


def network_pace(
    space: Space,
    genotype: Genotype,
    task: Task,
    recipe: Recipe,
    *,
    split: Split | None = None,
    steps: int = STEPS,
    limit_s: float = 1.0,
) -> float:
    """Seconds of a step of one architecture's training.

    split: the images to learn from, `task.train` by default.

    Raises:
        TrialError: when it cannot be built or trained.
    """
    device = task.train.x.device
    with user_errors(), isolated(0, "pace"):
        network = space.network(genotype).to(device)
        meter = Meter(device, limit_s, steps)
        return meter.measure(lambda: train(network, task, recipe, seed=0, split=split, stop=meter))


def search_pace(job: Job, genotype: Genotype, *, limit_s: float = 1.0) -> float:
    """Seconds of a step of what the job's search trains: a supernet, or this architecture as a trial."""
    plan, space, task = job.plan, job.space, job.search_task
    meter = Meter(task.train.x.device, limit_s)
    # Supernets are loaded by those who train one alone.
    if plan.searcher is None:
        from nas.oneshot.search import search

        with user_errors():
            return meter.measure(lambda: search(space, task, plan.method, seed=0, stop=meter))
    if plan.sharing is not None and job.config.shares_weights:
        from nas.oneshot.path_training import train_shared
        from nas.oneshot.supernet import Supernet

        sampling, supernet = plan.sharing.sampling, Supernet(space).to(task.train.x.device)
        steps = partial(train_shared, supernet, task, plan.shared, seed=0, sampling=sampling, stop=meter)
        with user_errors():
            return meter.measure(steps)
    return network_pace(space, genotype, task, plan.trial, limit_s=limit_s)


def final_pace(job: Job, genotype: Genotype, *, steps: int = STEPS, limit_s: float = 1.0) -> float:
    """Seconds of a step of the job's last training."""
    split = job.task.train_and_val()
    return network_pace(job.final, genotype, job.task, job.recipe, split=split, steps=steps, limit_s=limit_s)


GAIN = 1.3
"""So many times as fast as one must all threads be, at least, to be taken."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs a block with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def paced(job: Job, what: str, pace: Callable[[], float]) -> tuple[int, float]:
    """The threads for a phase, and the seconds of a step with them; decided once in the life of a job.

    pace: measures the seconds of a step; where it fails, the phase itself will say why.
    """
    most = torch.get_num_threads()

    def choose() -> list[float]:
        found = {}
        for count in (1, most) if job.task.train.x.device.type == "cpu" else (most,):
            with threads(count):
                try:
                    found[count] = pace()
                except TrialError:
                    found[count] = 0.0
        slow, fast = found.get(1, 0.0), found[most]
        return [1, slow] if 1 in found and slow < GAIN * fast else [most, fast]

    count, step_s = job.clock.decide(f"threads {what}", choose, lasting=True)
    return min(int(count), most), step_s


FAR, PATIENCE = 8.0, 3
"""Steps are far slower than they were when so many in a row take so many times as long."""


class Watch:
    """Asked before every step whether steps are far slower than the `step_s` that they took; 0 if unknown."""

    def __init__(self, step_s: float) -> None:
        self._limit_s, self._slow, self._before = FAR * step_s, 0, time.perf_counter()

    def is_slow(self) -> bool:
        """Takes in the step that has just ended."""
        now = time.perf_counter()
        self._slow = self._slow + 1 if now - self._before > self._limit_s > 0 else 0
        self._before = now
        return self._slow >= PATIENCE


@contextmanager
def suited(job: Job, what: str, pace: Callable[[], float]) -> Iterator[Job]:
    """The job with the threads that suit a phase."""
    if torch.get_num_threads() == 1 or job.team.size > 1:
        yield job
        return
    count, step_s = paced(job, what, pace)
    watch = Watch(step_s)

    def stop() -> bool:
        if torch.get_num_threads() > 1 and watch.is_slow():
            torch.set_num_threads(1)
            job.progress.note(f"{what}: other programs are at work, so that one thread does what {count} did")
        return job.stop()

    with threads(count):
        yield replace(job, stop=stop) if count > 1 else job


@contextmanager
def suited_to_search(job: Job) -> Iterator[Job]:
    """The job with the threads that suit its search, where it trains one network at a time.

    That is in this process, or in the only one that it has for its trials, which asks for the threads later.
    """
    here = job.plan.searcher is None or job.config.shares_weights or job.config.workers == 0
    if not job.has_choice or not (here or job.config.workers == 1):
        yield job
        return
    default = default_of(job)
    genotype = job.space.sample(rng(0)) if default is None else default
    pace = partial(search_pace, job, genotype)
    if not here:
        paced(job, SEARCH, pace)
        yield job
        return
    with suited(job, SEARCH, pace) as suited_job:
        yield suited_job


LONG_STEPS, LONG_EPOCHS = 2200, 28
"""Of a last training that is long enough: the fewer of both."""
WIDTHS = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5)
"""Times the preset's last network; beyond the first of them images keep twice the resolution."""
LEAST_SIDE = 16
"""Pixels of a map that cells, which halve it twice, still make something of."""
TIMED = 10
"""Steps."""
FASTER = 1.15
"""So many times as fast as float32 must bfloat16 be, at least, to be taken."""


def sized(job: Job, genotype: Genotype, last_s: float) -> tuple[Job, float]:
    """The job whose last network is as large as a time for its training allows, and the seconds of a step.

    It is the largest of which `LONG_STEPS` steps or `LONG_EPOCHS` epochs fit. With it the arithmetic is
    chosen, since a CPU may do bfloat16 several times as fast; what the user has set stays.
    """
    images = len(job.task.train) + len(job.task.val)
    wanted = min(LONG_STEPS, LONG_EPOCHS * max(1, images // job.recipe.batch))
    found = job.clock.decide("size", lambda: _chosen(job, genotype, last_s / wanted), lasting=True)
    return _at(job, found["settings"], found["precision"]), found["step_s"]


def _chosen(job: Job, genotype: Genotype, step_s: float) -> dict[str, Any]:
    """Settings, arithmetic and the seconds of a step, of which at most `step_s` are wanted."""
    limit_s = (TIMED + 2) * step_s

    def pace(at: Job) -> float:
        return final_pace(at, genotype, steps=TIMED, limit_s=limit_s)

    count, exact_s = paced(job, RETRAIN, lambda: pace(job))
    with threads(count):
        precision = job.recipe.precision
        if precision == "auto" and job.task.train.x.device.type == "cpu":
            precision = "float32" if pace(_at(job, {}, "bfloat16")) * FASTER > exact_s else "bfloat16"
        sizes = _sizes(job, genotype)
        low, high, timed = 0, len(sizes) - 1, {}
        while low < high:  # the first that is fast enough; they get cheaper
            middle = (low + high) // 2
            timed[middle] = pace(_at(job, sizes[middle], precision))
            low, high = (low, middle) if timed[middle] <= step_s else (middle + 1, high)
        took_s = timed.get(low) or pace(_at(job, sizes[low], precision))
    return {"settings": sizes[low], "precision": precision, "step_s": took_s}


def _at(job: Job, settings: Mapping[str, object], precision: str) -> Job:
    """The job at another size of its last network."""
    recipe = dataclasses.replace(job.recipe, precision=precision)  # type: ignore[arg-type]
    if not settings:
        return dataclasses.replace(job, recipe=recipe)
    config = job.config.model_copy(update={"final_settings": {**settings, **job.config.final_settings}})
    final = final_space(config, job.plan, job.space, job.task)
    return dataclasses.replace(job, config=config, final=final, recipe=recipe)


def _sizes(job: Job, genotype: Genotype) -> list[dict[str, object]]:
    """Settings of the last network, the most expensive first, at which an architecture keeps the constraints.

    They set, where the space knows them and the user does not, its width, the stride of its stem and the
    number of its cells.
    """
    config, known = job.config, job.final.settings
    fixed = config.final_settings.keys() | config.space_settings.keys()
    free = {name for name in ("width", "cells", "stem_stride") if type(known.get(name)) is int} - fixed
    side = min(job.task.image_shape[1:])
    stride = 1 << max(0, (side // LEAST_SIDE).bit_length() - 1)
    cells = max(3, round(0.6 * int(known.get("cells", 0))))  # type: ignore[call-overload]
    ladder: list[tuple[int, float, dict[str, int]]] = [
        (max(1, stride // 2), width, {}) for width in WIDTHS[:2]
    ]
    ladder += [(stride, width, {}) for width in WIDTHS]
    ladder += [(stride, WIDTHS[-1], {"cells": cells}), (2 * stride, WIDTHS[-1], {"cells": cells})]
    found: list[dict[str, object]] = []
    for stem_stride, width, fewer in ladder:
        wide = max(4, round(width * int(known.get("width", 0))))  # type: ignore[call-overload]
        size = {"width": wide, "stem_stride": stem_stride, **fewer}
        settings = {name: value for name, value in size.items() if name in free}
        if settings not in found and _keeps(job, settings, genotype):
            found.append(settings)
    return found or [{}]


def _keeps(job: Job, settings: Mapping[str, object], genotype: Genotype) -> bool:
    """Whether an architecture can be built at a size, and keeps the constraints on what can be counted."""
    bounds = [bound for bound in job.plan.goals.constraints if bound.metric in COUNTED]
    try:
        costs = free_metrics(_at(job, settings, "auto").final, genotype, job.task.image_shape, None)
    except NasError:
        return False
    return all(bound.excess(costs) == 0 for bound in bounds)
