"""What is done with one trial, wherever it is evaluated."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from nas.errors import TrialError
from nas.types import Trial
from nas.user_code import user_errors


class Evaluator(Protocol):
    """Measures one trial; depends on nothing but its arguments. Raises TrialError when the trial fails."""

    def __call__(self, trial: Trial, rng: np.random.Generator, /) -> Mapping[str, float]:
        """The metrics of a trial by name."""


@dataclass(frozen=True)
class Measure:
    """How trials are measured: by an evaluator, which may run elsewhere, and by what the coordinator adds.

    evaluate: measures a trial; takes what `hints` gives by name, too.
    hints: what a trial is to be told of those that were known when it was proposed.
    refuses: why a trial is not to be evaluated, given those that had ended when it was proposed; None else.
    costs: metrics that are counted or timed here; they replace the evaluator's own.
    """

    evaluate: Callable[..., Mapping[str, float]]
    hints: Callable[[Trial, Sequence[Trial]], Mapping[str, object]] = lambda *_: {}
    refuses: Callable[[Trial, Sequence[Trial]], TrialError | None] = lambda *_: None
    costs: Callable[[Trial], Mapping[str, float]] = lambda _: {}


class Outcome(NamedTuple):
    """found: the metrics of a trial, or why it failed. cost_s: seconds that it took. worker: who did it."""

    found: Mapping[str, float] | TrialError
    cost_s: float
    worker: str = ""


def measured(
    evaluate: Callable[..., Mapping[str, float]],
    trial: Trial,
    rng: np.random.Generator,
    hints: Mapping[str, object],
) -> Outcome:
    """Evaluates a trial, whose failure is an outcome like another."""
    start = time.perf_counter()
    try:
        with user_errors():
            found: Mapping[str, float] | TrialError = dict(evaluate(trial, rng, **hints))
    except TrialError as error:
        found = error
    return Outcome(found, time.perf_counter() - start, f"{socket.gethostname()}, process {os.getpid()}")
