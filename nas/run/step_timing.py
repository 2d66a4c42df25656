"""How fast this device trains: a few real steps, timed and thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from nas import devices
from nas.data.task import Split, Task
from nas.errors import Stopped
from nas.oneshot.search import search
from nas.oneshot.singlepath import train_shared
from nas.run.job import Job
from nas.run.supernet_phase import fresh_supernet
from nas.seeding import isolated
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


def gradient_pace(job: Job, *, limit_s: float = 1.0) -> float:
    """Seconds of a step of the job's search by gradients."""
    meter = Meter(job.task.train.x.device, limit_s)
    method = job.plan.search
    with user_errors():
        return meter.measure(lambda: search(job.space, job.search_task, method, seed=0, stop=meter))


def shared_pace(job: Job, *, limit_s: float = 1.0) -> float:
    """Seconds of a step of the supernet that the job's trials take weights from."""
    supernet, meter = fresh_supernet(job), Meter(job.task.train.x.device, limit_s)
    sampling = job.plan.sharing.sampler
    with user_errors():
        return meter.measure(
            lambda: train_shared(
                supernet, job.search_task, job.plan.shared, seed=0, sampling=sampling, stop=meter
            )
        )


def search_pace(job: Job, genotype: Genotype, *, limit_s: float = 1.0) -> float:
    """Seconds of a step of what the job's search trains: a supernet, or this architecture as a trial."""
    if job.plan.searcher is None:
        return gradient_pace(job, limit_s=limit_s)
    if job.config.shares_weights:
        return shared_pace(job, limit_s=limit_s)
    return network_pace(job.space, genotype, job.search_task, job.plan.trial, limit_s=limit_s)


def final_pace(job: Job, genotype: Genotype, *, steps: int = STEPS, limit_s: float = 1.0) -> float:
    """Seconds of a step of the job's last training."""
    split = job.task.train_and_val()
    return network_pace(job.final, genotype, job.task, job.recipe, split=split, steps=steps, limit_s=limit_s)
