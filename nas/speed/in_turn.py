"""Small candidates that are trained one after the other, as the trials of a search are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch import nn

from nas.errors import ConfigError
from nas.seeding import isolated, rng
from nas.space import Space
from nas.speed.workloads import bytes_of_a_step, training
from nas.task import Task
from nas.training.accuracy import evaluate
from nas.training.recipe import Recipe, compressed
from nas.training.train import train


@dataclass(frozen=True)
class Pace:
    """How fast candidates are trained.

    steps_per_s: without the first epoch, in which programs are compiled and steps captured as graphs.
    trial_s: of a whole trial: its start, its epochs, and the validation at its end.
    """

    steps_per_s: float
    trial_s: float

    def faster(self, gain: float) -> Pace:
        """So many times as fast."""
        return Pace(self.steps_per_s * gain, self.trial_s / gain)

    def row(self, plain: Pace, *, floor_s: float) -> dict[str, float]:
        """What a bench tells of it beside the plain one.

        floor_s: in which the bytes of a step can be moved.
        """
        return {
            "steps_per_s": self.steps_per_s,
            "trials_per_hour": 3600 / self.trial_s,
            "ratio": plain.trial_s / self.trial_s,
            "floor_share": floor_s * self.steps_per_s,
        }


def in_turn(
    space: Space, task: Task, recipe: Recipe, *, candidates: int, epochs: int, trial_epochs: int
) -> Pace:
    """The pace of random candidates, each trained for some epochs and validated; one before them warms up.

    A start is what a training takes beyond its later epochs: to build the network and to capture its steps.
    It is the median of all, since what one compiles is there for those after it.

    trial_epochs: of the trial that is told of.
    """
    if epochs < 2:
        raise ConfigError(f"in_turn: epochs is {epochs}, but must be at least 2: the first one is a start")
    starts, laps, validations = list[float](), list[float](), list[float]()
    begun = time.perf_counter()
    for number, network in enumerate(_drawn(space, candidates + 1)):
        network.to(task.train.x.device)
        curve = train(network, task, compressed(recipe, epochs), seed=number)
        trained = time.perf_counter()
        evaluate(network, task, task.val)
        ended = time.perf_counter()
        if number > 0:
            laps.append(statistics.mean(curve.seconds[1:]))
            starts.append(trained - begun - epochs * laps[-1])
            validations.append(ended - trained)
        begun = ended
    lap, validation = statistics.mean(laps), statistics.mean(validations)
    steps = len(task.train) // min(recipe.batch, len(task.train))
    trial_s = max(statistics.median(starts), 0.0) + trial_epochs * lap + validation
    return Pace(steps / lap, trial_s)


def bytes_of_candidates(space: Space, task: Task, recipe: Recipe, *, candidates: int) -> float:
    """What a step of the training of the same candidates has to move, as a mean."""
    drawn = islice(_drawn(space, candidates + 1), 1, None)
    return statistics.mean(bytes_of_a_step(training(network, task, recipe), 1) for network in drawn)


def _drawn(space: Space, count: int) -> Iterator[nn.Module]:
    draw = rng(0, "population")
    for number in range(count):
        with isolated(0, "population", number):
            network = space.network(space.sample(draw))
        yield network
