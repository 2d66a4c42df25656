"""Searches replayed on a table: thousands of trials in seconds, at the cost that training had."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError, ExhaustedError, TrialError
from nas.evaluate.benchmarks.benchmark import Benchmark
from nas.searchers import Searcher
from nas.searchers.goals import Goals
from nas.seeding import rng
from nas.types import Genotype, Trial

UNBOUNDED = sys.maxsize
"""Trials of a search that only its simulated seconds end."""


@dataclass(frozen=True)
class Protocol:
    """How a search is replayed.

    trials: evaluations, failed ones included. fidelity: epochs of each.
    budget_s: simulated seconds after which no evaluation starts; the last one is finished.
    """

    trials: int
    fidelity: int
    budget_s: float | None = None

    def __post_init__(self) -> None:
        if self.trials < 1 or (self.budget_s is not None and self.budget_s <= 0):
            raise ConfigError(
                f"benchmark: got {self.trials} trials and a budget of {self.budget_s} s, wanted at least 1 "
                "and more than 0"
            )


def simulate(
    benchmark: Benchmark,
    searcher: Searcher,
    protocol: Protocol,
    *,
    seed: int,
    needed: Sequence[str] = (),
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """The history of one search on the table; under a budget its costs are simulated seconds, else 0.

    Equal to that of a study named `benchmark`: the same searcher sees the same history and the same random
    streams. needed: metrics without which a trial has failed, for the table may not hold all for each cell.
    """
    history: list[Trial] = []
    spent_s = 0.0
    while len(history) < protocol.trials and (protocol.budget_s is None or spent_s < protocol.budget_s):
        number = len(history)
        try:
            genotype = searcher.ask(benchmark.space, history, rng(seed, "benchmark", number, "ask"))
        except ExhaustedError:
            break
        cost_s = benchmark.seconds(genotype, protocol.fidelity) if protocol.budget_s is not None else 0.0
        try:
            metrics = looked_up(benchmark, genotype, protocol.fidelity, needed)
            trial = Trial(number, genotype, protocol.fidelity, "done", metrics, cost_s)
        except TrialError as error:
            reason = f"{error.reason}: {error}"
            trial = Trial(number, genotype, protocol.fidelity, "failed", {}, cost_s, reason)
        history.append(trial)
        spent_s += cost_s
        on_trial(trial)
    return history


def looked_up(
    benchmark: Benchmark, genotype: Genotype, fidelity: int, needed: Sequence[str]
) -> Mapping[str, float]:
    """The figures of one architecture.

    Raises:
        TrialError: with reason `missing`, when the table lacks one of those needed.
    """
    metrics = benchmark.metrics(genotype, fidelity)
    if lacking := [name for name in needed if name not in metrics]:
        raise TrialError("missing", f"{benchmark.name} has no {', '.join(lacking)} for {genotype}")
    return metrics


def incumbents(history: list[Trial], goals: Goals, report: str) -> NDArray[np.float64]:
    """What would be reported `[T]` if the search stopped after 1 to T trials; NaN before the first success.

    The choice is by the goals alone; `report` is looked up for it, as a user would measure a test accuracy.
    """
    values = np.full(len(history), np.nan)
    best: Trial | None = None
    for position, trial in enumerate(history):
        if trial.state == "done" and (best is None or goals.fitness(trial) > goals.fitness(best)):
            best = trial
        if best is not None:
            values[position] = best.metrics[report]
    return values
