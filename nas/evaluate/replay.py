"""Searches replayed on a table: what they reached after how much work, repeated side by side in processes."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError, ExhaustedError, NoModelError, TrialError, unknown
from nas.evaluate.benchmarks import Benchmark, load_benchmark
from nas.searchers.factory import make_searcher
from nas.searchers.goals import Goals
from nas.searchers.pareto import dominates, front, hypervolume
from nas.searchers.searcher import Searcher
from nas.seeding import derive, rng
from nas.space.space import ENUMERABLE
from nas.types import Trial

UNBOUNDED = sys.maxsize
"""Trials of a search that only its simulated seconds end."""
MARKS = (25, 50, 100, 150, 200, 300, 500)
"""Numbers of evaluations at which results are told."""
LOOKED_AT = 100
"""Random architectures whose figures show what a table holds."""


def incumbents(history: Sequence[Trial], goals: Goals, report: str) -> NDArray[np.float64]:
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


def volumes(history: Sequence[Trial], goals: Goals, reference: Sequence[float]) -> NDArray[np.float64]:
    """The hypervolume `[T]` reached after 1 to T trials; NaN before the first success.

    reference: the point that it is measured from, one number for each objective, in its own units.
    """
    point = _turned(reference, goals)
    found, volume = np.empty((0, len(point))), np.nan
    values = np.empty(len(history))
    for position, trial in enumerate(history):
        if trial.state == "done" and np.isnan(volume):
            volume = 0.0  # until one of the successes keeps all bounds and is beyond the reference
        if trial.state == "done" and goals.violation(trial.metrics) == 0:
            scores = np.array([goals.scores(trial.metrics)])
            if not dominates(found, scores).any():
                found = np.concatenate([found, scores])
                volume = hypervolume(found, point)
        values[position] = volume
    return values


def _turned(reference: Sequence[float], goals: Goals) -> NDArray[np.float64]:
    """The reference point as scores, of which larger is better."""
    return np.array([o.better(value) for o, value in zip(goals.objectives, reference, strict=True)])


# -- repeats -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """A search to be repeated; every field is a plain value, so that other processes can be told.

    benchmark, dataset, folder: see `load_benchmark`.
    searcher, settings: see `make_searcher`.
    goals: what is searched for. reference: with several objectives, the point in their own units that
      hypervolume is measured from.
    fidelity: epochs of each evaluation. trials: evaluations, failed ones included.
    budget_s: simulated seconds after which no evaluation starts; the last one is finished.
    """

    benchmark: str
    searcher: str
    goals: Goals
    fidelity: int
    trials: int
    budget_s: float | None = None
    settings: tuple[tuple[str, object], ...] = ()
    dataset: str | None = None
    folder: Path | None = None
    reference: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1 or (self.budget_s is not None and self.budget_s <= 0):
            raise ConfigError(
                f"benchmark: got {self.trials} trials and a budget of {self.budget_s} s, wanted at least 1 "
                "and more than 0"
            )

    def load(self) -> Benchmark:
        """The table, read once in a process."""
        return _loaded(self.benchmark, dataset=self.dataset, folder=self.folder)

    def made_searcher(self) -> Searcher:
        """The searcher of that name and settings."""
        return make_searcher(self.searcher, dict(self.settings), goals=self.goals)

    def run(self, seed: int) -> list[Trial]:
        """The history of one search; under a budget its costs are simulated seconds, else 0.

        Equal to that of a study named `benchmark` with this seed: the same searcher sees the same history and
        the same random streams. A trial fails where the table lacks one of the goals' metrics.
        """
        table, searcher, history, spent_s = self.load(), self.made_searcher(), list[Trial](), 0.0
        while len(history) < self.trials and (self.budget_s is None or spent_s < self.budget_s):
            number = len(history)
            try:
                genotype = searcher.ask(table.space, history, rng(seed, "benchmark", number, "ask"))
            except ExhaustedError:
                break
            cost_s = table.seconds(genotype, self.fidelity) if self.budget_s is not None else 0.0
            try:
                metrics = table.metrics(genotype, self.fidelity)
                if lacking := [name for name in self.goals.metrics if name not in metrics]:
                    raise TrialError("missing", f"{table.name} has no {', '.join(lacking)} for {genotype}")
                trial = Trial(number, genotype, self.fidelity, "done", metrics, cost_s)
            except TrialError as error:
                reason = f"{error.reason}: {error}"
                trial = Trial(number, genotype, self.fidelity, "failed", {}, cost_s, reason)
            history.append(trial)
            spent_s += cost_s
        return history


_loaded = functools.cache(load_benchmark)


@dataclass(frozen=True, eq=False)
class Runs:
    """The outcome of all repeats.

    values: [R, T] what would be reported after 1 to T evaluations: the metric of the incumbent, or the share
      of the exact front's hypervolume; NaN before the first success. seconds: [R, T] simulated, 0 without
      a budget. A repeat that ended early keeps its last value and its last second.
    counts: [R] evaluations made.
    history: the first repeat's trials, for a picture.
    """

    values: NDArray[np.float64]
    seconds: NDArray[np.float64]
    counts: NDArray[np.int64]
    history: Sequence[Trial]

    def table(self) -> dict[int, tuple[float, float]]:
        """Mean and standard deviation over the repeats at every mark, and at the end.

        The deviation is divided by the number of repeats, as in published tables, and not by one less.
        Only repeats with a success count; a mark before every success is left out.
        """
        last = self.values.shape[1]
        columns = {mark: self.values[:, mark - 1] for mark in (*(m for m in MARKS if m < last), last)}
        return {
            mark: (float(np.nanmean(column)), float(np.nanstd(column)))
            for mark, column in columns.items()
            if not np.isnan(column).all()
        }


def check_replay(planned: Replay) -> None:
    """Says at once what would else be said by a process far away.

    Raises:
        ConfigError: for an unknown name or setting, or when the table has no such metric, epochs or times.
    """
    table = planned.load()
    planned.made_searcher()
    _check_metrics(table, planned.goals, planned.fidelity)
    if planned.budget_s is not None:
        table.seconds(table.space.sample(rng(planned.seed, "check")), planned.fidelity)


def run_replays(
    planned: Replay,
    *,
    repeats: int,
    workers: int | None = None,
    on_repeat: Callable[[int], None] = lambda _: None,
) -> Runs:
    """Repeats a search with seeds of its own in each of `workers` processes, by default one for each core.

    The outcome does not depend on the number of processes.

    Raises:
        NoModelError: when no trial of any repeat succeeded.
    """
    if repeats < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"benchmark: got {repeats} repeats and {workers} workers, wanted at least 1")
    check_replay(planned)
    goals, exact = planned.goals, _exact_volume(planned) if len(planned.goals.objectives) > 1 else 1.0
    histories: list[list[Trial]] = []
    for history in _histories(planned, repeats, min(repeats, workers or os.cpu_count() or 1)):
        histories.append(history)
        on_repeat(len(histories))
    if all(trial.state != "done" for history in histories for trial in history):
        raise NoModelError(f"{planned.searcher}: every trial failed, the first by {histories[0][0].reason}")
    if len(goals.objectives) == 1:
        values = [incumbents(history, goals, planned.load().report) for history in histories]
    else:
        values = [volumes(history, goals, planned.reference) / exact for history in histories]
    seconds = [np.cumsum([trial.cost_s for trial in history]) for history in histories]
    counts = np.array([len(history) for history in histories])

    def extended(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.stack([np.pad(row, (0, counts.max() - len(row)), mode="edge") for row in rows])

    return Runs(extended(values), extended(seconds), counts, histories[0])


def _histories(planned: Replay, repeats: int, workers: int) -> Iterator[list[Trial]]:
    """That of each repeat, in order."""
    seeds = [derive(planned.seed, "repeat", number) for number in range(repeats)]
    if workers == 1:
        yield from map(planned.run, seeds)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_single_threaded)
    try:
        yield from pool.map(planned.run, seeds, chunksize=max(1, min(10, repeats // (4 * workers))))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _single_threaded() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


# -- the exact front -----------------------------------------------------------------------------------


def exact_front(benchmark: Benchmark, goals: Goals, fidelity: int) -> NDArray[np.float64]:
    """The scores `[N, K]` of every architecture that keeps the constraints and that none dominates.

    Architectures without all figures are left out.

    Raises:
        ConfigError: for a space too large to be enumerated, or when nothing keeps the constraints.
    """
    measured = _measured(benchmark, goals, fidelity)
    kept = [goals.scores(metrics) for metrics in measured if goals.violation(metrics) == 0]
    if not kept:
        bounds = ", ".join(map(str, goals.constraints))
        raise ConfigError(f"no architecture of {benchmark.name} keeps {bounds}; loosen them")
    scores = np.array(kept)
    found: NDArray[np.float64] = scores[front(scores)]
    return found


def reference_point(text: str, benchmark: Benchmark, goals: Goals, fidelity: int) -> tuple[float, ...]:
    """A point in the objectives' units from text: `"0.15,1.5m"`, where `m` means times the table's median."""
    parts = text.split(",")
    if len(parts) != len(goals.objectives):
        raise ConfigError(
            f"reference {text!r}: wanted {len(goals.objectives)} numbers, one for each objective"
        )
    point = []
    for part, objective in zip(map(str.strip, parts), goals.objectives, strict=True):
        try:
            number = float(part.removesuffix("m"))
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ConfigError(f"reference {text!r}: {part!r} is no number, such as 0.15 or 1.5m")
        if part.endswith("m"):
            every = [objective.value(metrics) for metrics in _measured(benchmark, goals, fidelity)]
            number *= float(np.median(every))
        point.append(number)
    return tuple(point)


def _exact_volume(planned: Replay) -> float:
    scores = exact_front(planned.load(), planned.goals, planned.fidelity)
    volume = hypervolume(scores, _turned(planned.reference, planned.goals))
    if volume == 0:
        raise ConfigError(
            f"reference {planned.reference}: no architecture of {planned.benchmark} is better in every "
            "objective; give a worse point"
        )
    return volume


def _measured(benchmark: Benchmark, goals: Goals, fidelity: int) -> list[Mapping[str, float]]:
    """The figures of every architecture that has all those that the goals need."""
    if benchmark.space.size.count > ENUMERABLE:
        raise ConfigError(f"{benchmark.name} is too large for its exact front; use one objective")
    _check_metrics(benchmark, goals, fidelity)
    every = []
    for genotype in benchmark.space.enumerate():
        with suppress(TrialError):
            every.append(benchmark.metrics(genotype, fidelity))
    return [metrics for metrics in every if metrics.keys() >= set(goals.metrics)]


def _check_metrics(benchmark: Benchmark, goals: Goals, fidelity: int) -> None:
    draw = rng(0, "figures")
    known: set[str] = set()
    for _ in range(LOOKED_AT):
        with suppress(TrialError):
            known.update(benchmark.metrics(benchmark.space.sample(draw), fidelity))
    for name in goals.metrics:
        if name not in known:
            raise ConfigError(unknown(f"metric of {benchmark.name}", name, known))
