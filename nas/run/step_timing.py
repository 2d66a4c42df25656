"""How fast this device trains, by a few real steps, and how large a network can be trained in a time."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from nas import devices
from nas.data.task import Split, Task
from nas.errors import NasError, Stopped, TrialError
from nas.run.final_network import excess_of, final_space
from nas.run.job import Job
from nas.seeding import isolated
from nas.space.cost import cost
from nas.space.space import Space
from nas.training.recipe import Recipe
from nas.training.train import Control, train
from nas.types import Genotype
from nas.user_code import user_errors

STEPS = 2
"""That are timed, unless otherwise said."""


def timed_step(
    training: Callable[..., object], device: torch.device, *, steps: int = STEPS, limit_s: float = 1.0
) -> float:
    """Seconds of a step of a training, which is stopped after a few.

    training: is given `stop`, which it asks before every step.
    steps: that are timed, after one that warms up. limit_s: a first step that takes as long is the only one.

    Raises:
        TrialError: when it cannot be built or trained.
    """
    marks: list[float] = []

    def stop() -> bool:
        devices.synchronise(device)
        marks.append(time.perf_counter())
        return len(marks) > steps + 1 or (len(marks) > 1 and marks[-1] - marks[0] >= limit_s)

    with user_errors(), isolated(0, "pace"):
        try:
            training(stop=stop)
        except Stopped:
            pass
        else:  # it had no more steps
            stop()
    seconds = np.diff(marks)
    return float(np.mean(seconds[1:] if len(seconds) > 1 else seconds))


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
    """Seconds of a step of one architecture's training. split: the images, `task.train` by default."""
    device = task.train.x.device

    def training(*, stop: Callable[[], bool]) -> None:
        network, control = space.network(genotype).to(device), Control(stop=stop)
        train(network, task, recipe, seed=0, split=split, control=control)

    return timed_step(training, device, steps=steps, limit_s=limit_s)


def search_pace(job: Job, genotype: Genotype, *, limit_s: float = 1.0) -> float:
    """Seconds of a step of what the job's search trains: a supernet, or this architecture as a trial."""
    plan, space, task = job.plan, job.space, job.search_task
    # Supernets are loaded by those who train one alone.
    if plan.searcher is None:
        from nas.oneshot.search import search

        training = partial(search, space, task, plan.method, seed=0)
        return timed_step(training, job.device, limit_s=limit_s)
    if plan.sharing is not None and job.config.shares_weights:
        from nas.oneshot.path_training import train_shared
        from nas.oneshot.supernet import Supernet

        sampling, supernet = plan.sharing.sampling, Supernet(space).to(job.device)

        def steps(*, stop: Callable[[], bool]) -> None:
            control = Control(stop=stop)
            train_shared(supernet, task, plan.supernet, seed=0, sampling=sampling, control=control)

        return timed_step(steps, job.device, limit_s=limit_s)
    return network_pace(space, genotype, task, plan.trial, limit_s=limit_s)


def final_pace(job: Job, genotype: Genotype, *, steps: int = STEPS, limit_s: float = 1.0) -> float:
    """Seconds of a step of the job's last training."""
    split = job.task.train_and_val()
    return network_pace(job.final, genotype, job.task, job.recipe, split=split, steps=steps, limit_s=limit_s)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs a block with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


GAIN = 1.3
"""So many times as fast as one must all threads be, at least, to be taken."""
FAR, PATIENCE = 8.0, 3
"""Other programs are at work when so many steps in a row take so many times as long as they did."""


def paced(job: Job, what: str, pace: Callable[[], float]) -> tuple[int, float]:
    """The threads for a phase, and the seconds of a step with them; decided once in the life of a job.

    pace: measures the seconds of a step; where it fails, the phase itself will say why.
    """
    most = torch.get_num_threads()

    def choose() -> list[float]:
        found = dict[int, float]()
        for count in (1, most) if job.device.type == "cpu" else (most,):
            with threads(count):
                try:
                    found[count] = pace()
                except TrialError:
                    found[count] = 0.0
        one = 1 if found.get(1, math.inf) < GAIN * found[most] else most
        return [one, found[one]]

    count, step_s = job.clock.decide(f"threads {what}", choose, lasting=True)
    return min(int(count), most), step_s


@contextmanager
def suited(job: Job, what: str, pace: Callable[[], float]) -> Iterator[Job]:
    """The job with the threads that suit a phase, and with one when other programs turn out to be at work.

    Two threads that wait for each other are slowed ten times by a third program, one is not.
    """
    if torch.get_num_threads() == 1 or job.team.size > 1:
        yield job
        return
    count, step_s = paced(job, what, pace)
    slow, before = 0, time.perf_counter()

    def stop() -> bool:
        nonlocal slow, before
        now = time.perf_counter()
        slow, before = (slow + 1 if now - before > FAR * step_s > 0 else 0), now
        if slow >= PATIENCE and torch.get_num_threads() > 1:
            torch.set_num_threads(1)
            job.progress.note(f"{what}: other programs are at work, so that one thread does what {count} did")
        return job.stop()

    with threads(count):
        yield replace(job, stop=stop) if count > 1 else job


LONG_STEPS, LONG_EPOCHS = 2200, 28
"""Of a last training that is long enough: the fewer of both."""
WIDTHS = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5)
"""Times the preset's last network; beyond the first of them images keep twice the resolution."""
LEAST_SIDE = 16
"""Pixels of a map that cells, which halve it twice, still make something of."""
TIMED = 10
"""Steps of a size."""
FASTER = 1.15
"""So many times as fast as float32 must bfloat16 be, at least, to be taken."""


def sized(job: Job, genotype: Genotype, last_s: float) -> tuple[Job, float]:
    """The job whose last network is as large as a time for its training allows, and the seconds of a step.

    It is the largest of which `LONG_STEPS` steps or `LONG_EPOCHS` epochs fit. With it the arithmetic is
    chosen, since a CPU may do bfloat16 several times as fast; what the user has set stays.
    """
    images = len(job.task.train) + len(job.task.val)
    wanted = min(LONG_STEPS, LONG_EPOCHS * max(1, images // job.recipe.batch))
    found = job.clock.decide("size", lambda: _chosen(job, genotype, last_s / wanted))
    return _at(job, found["settings"], found["precision"]), found["step_s"]


def _chosen(job: Job, genotype: Genotype, step_s: float) -> dict[str, Any]:
    """Settings, arithmetic and the seconds of a step, of which at most `step_s` are wanted."""
    pace = partial(final_pace, genotype=genotype, steps=TIMED, limit_s=(TIMED + 2) * step_s)
    precision = job.recipe.precision
    if precision == "auto" and job.device.type == "cpu":
        faster = pace(_at(job, {}, "bfloat16")) * FASTER <= pace(_at(job, {}, "float32"))
        precision = "bfloat16" if faster else "float32"
    sizes = _sizes(job, genotype)

    @cache
    def timed(size: int) -> float:
        return pace(_at(job, sizes[size], precision))

    # They get cheaper: the first that is fast enough, else the last.
    size = bisect_left(range(len(sizes) - 1), True, key=lambda number: timed(number) <= step_s)  # noqa: FBT003
    return {"settings": sizes[size], "precision": precision, "step_s": timed(size)}


def _at(job: Job, settings: Mapping[str, object], precision: str) -> Job:
    """The job at another size of its last network."""
    recipe = replace(job.recipe, precision=precision)  # type: ignore[arg-type]
    if not settings:
        return replace(job, recipe=recipe)
    config = job.config.model_copy(update={"final_settings": {**settings, **job.config.final_settings}})
    final = final_space(config, job.plan, job.space, job.task)
    return replace(job, config=config, final=final, recipe=recipe)


def _sizes(job: Job, genotype: Genotype) -> list[dict[str, object]]:
    """Settings of the last network, the most expensive first, at which an architecture keeps the constraints.

    They set, where the space knows them and the user does not, its width, the stride of its stem and the
    number of its cells.
    """
    config, known = job.config, job.final.settings
    fixed = config.final_settings.keys() | config.space_settings.keys()
    own = {name: value for name in ("width", "cells", "stem_stride") if type(value := known.get(name)) is int}
    stride = 1 << max(0, (min(job.task.image_shape[1:]) // LEAST_SIDE).bit_length() - 1)
    few = {"cells": max(3, round(0.6 * own.get("cells", 0)))}
    ladder = [
        *((max(1, stride // 2), width, {}) for width in WIDTHS[:2]),
        *((stride, width, {}) for width in WIDTHS),
        *((more * stride, WIDTHS[-1], few) for more in (1, 2)),
    ]
    found: list[dict[str, object]] = []
    for stem_stride, times, fewer in ladder:
        width = max(4, round(times * own.get("width", 0)))
        size = {"width": width, "stem_stride": stem_stride, **fewer}
        settings: dict[str, object] = {
            name: value for name, value in size.items() if name in own.keys() - fixed
        }
        if settings not in found and _keeps(job, settings, genotype):
            found.append(settings)
    return found or [{}]


def _keeps(job: Job, settings: Mapping[str, object], genotype: Genotype) -> bool:
    """Whether an architecture can be built at a size, and keeps the constraints on what can be counted."""
    try:
        at = _at(job, settings, "auto")
        with user_errors():
            cost(at.final, genotype, job.task.image_shape)
    except NasError:
        return False
    return excess_of(at)(genotype) == 0
