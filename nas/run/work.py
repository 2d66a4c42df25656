"""What training costs in arithmetic and not in seconds, so that comparisons at equal cost repeat to the bit.

A step is run once and its operators are counted, those of the backward pass too: each takes a while to begin,
and longer the more it writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch._ops import OpOverload

from nas.dispatch import Args, Kwargs, Seeing, tensors
from nas.errors import Stopped, TrialError
from nas.oneshot.method import Method
from nas.oneshot.search import search
from nas.run.job import Job
from nas.seeding import isolated, rng
from nas.training.train import train
from nas.types import Genotype
from nas.user_code import user_errors

OPERATOR = 32_768
"""Bytes that are written in the time that an operator takes to begin."""
SAMPLE = 3
"""Random architectures that stand for all."""


def search_work(job: Job, epochs: int) -> float:
    """Of a search by gradients of so many epochs.

    The alphas rest for the warm-up; stages run on fewer options and more cells, in proportion.
    """
    method = job.plan.search
    steps = epochs * max(1, len(job.search_task.train) // method.weights.batch)
    guarded = 0.0 if method.guards is None else method.guards.warmup
    rests = max(method.warmup, guarded) if method.learns_alphas else 0.0
    resting = _step(job, dataclasses.replace(method, guards=None, warmup=0.99)) if rests else 0.0
    moving = _step(job, dataclasses.replace(method, guards=None, warmup=0.0))
    stages = method.staging.stages(method.weights.epochs, max(len(d.options) for d in job.space.decisions))
    whole = sum(stage.epochs for stage in stages)
    share = sum(stage.epochs * stage.keep * stage.depth for stage in stages) / whole
    return steps * share * (rests * resting + (1 - rests) * moving)


def trial_work(job: Job, epochs: int) -> float:
    """Of a trial of so many epochs, the mean of a few random architectures."""
    draw, found = rng(job.seed("work"), "sample"), list[float]()
    for _ in range(SAMPLE):
        try:
            found.append(_trial_step(job, job.space.sample(draw)))
        except TrialError:  # of one architecture; others can be trained
            continue
    steps = epochs * max(1, len(job.search_task.train) // job.plan.trial.batch)
    return steps * sum(found) / len(found) if found else 0.0


def _step(job: Job, method: Method) -> float:
    method = dataclasses.replace(method, weights=dataclasses.replace(method.weights, graph=False))
    return _work(lambda stop: search(job.space, job.search_task, method, seed=0, stop=stop))


def _trial_step(job: Job, genotype: Genotype) -> float:
    recipe = dataclasses.replace(job.plan.trial, graph=False)
    with user_errors(), isolated(0, "work"):
        network = job.space.network(genotype).to(job.search_task.train.x.device)
        return _work(lambda stop: train(network, job.search_task, recipe, seed=0, stop=stop))


def _work(training: Callable[[Callable[[], bool]], object]) -> float:
    """Of the last of a training's first two steps."""
    total, marks = 0, list[int]()

    def see(operator: OpOverload, args: Args, kwargs: Kwargs, output: object) -> None:  # noqa: ARG001 - a `See`
        nonlocal total
        total += OPERATOR + sum(tensor.nbytes for tensor in tensors(output))

    def stop() -> bool:
        marks.append(total)
        return len(marks) > 2

    try:
        with Seeing(see):
            training(stop)
    except Stopped:
        pass
    else:  # it had no more steps
        marks.append(total)
    return marks[-1] - marks[-2]
