"""Repeated searches on a table, side by side in processes, and what they reached after how much work."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError, NoModelError, TrialError, unknown
from nas.evaluate.benchmarks.benchmark import Benchmark, load_benchmark
from nas.evaluate.benchmarks.replay import Protocol, incumbents, looked_up, simulate
from nas.searchers import Searcher
from nas.searchers.factory import make_searcher
from nas.searchers.goals import Goals
from nas.searchers.pareto import dominates, front, hypervolume
from nas.seeding import derive, rng
from nas.space.space import ENUMERABLE
from nas.types import Trial

MARKS = (25, 50, 100, 150, 200, 300, 500)
"""Numbers of evaluations at which results are told."""
_COORDINATE = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(m?)\s*")
LOOKED_AT = 100
"""Random architectures whose figures show what a table holds."""


@dataclass(frozen=True)
class Race:
    """What is repeated; every field is a plain value, so that other processes can be told.

    benchmark, dataset, folder: see `load_benchmark`.
    searcher, settings: see `make_searcher`; a warm start by size takes the table's parameter counts.
    goals: by default the benchmark's own signal. reference: with several objectives, the point in their own
      units that hypervolume is measured from.
    """

    benchmark: str
    searcher: str
    protocol: Protocol
    goals: Goals
    settings: tuple[tuple[str, object], ...] = ()
    dataset: str | None = None
    folder: Path | None = None
    reference: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = len(self.goals.objectives) if len(self.goals.objectives) > 1 else 0
        if len(self.reference) != wanted:
            raise ConfigError(
                f"benchmark: got a reference of {len(self.reference)} numbers, wanted {wanted}: one for each "
                "of several objectives"
            )


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

    def at(self, evaluations: int) -> NDArray[np.float64]:
        """The reported value `[R]` after so many evaluations."""
        if not 1 <= evaluations <= self.values.shape[1]:
            raise ConfigError(f"benchmark: got {evaluations} evaluations, wanted 1 to {self.values.shape[1]}")
        return self.values[:, evaluations - 1]

    def table(self) -> dict[int, tuple[float, float]]:
        """Mean and standard deviation over the repeats at every mark, and at the end.

        The deviation is divided by the number of repeats, as in published tables, and not by one less.
        Only repeats with a success count; a mark before every success is left out.
        """
        last = self.values.shape[1]
        columns = {mark: self.at(mark) for mark in (*(m for m in MARKS if m < last), last)}
        return {
            mark: (float(np.nanmean(column)), float(np.nanstd(column)))
            for mark, column in columns.items()
            if not np.isnan(column).all()
        }


def check_race(race: Race) -> None:
    """Says at once what would else be said by a process far away.

    Raises:
        ConfigError: for an unknown name or setting, or when the table has no such metric, epochs or times.
    """
    benchmark = _loaded(race.benchmark, race.dataset, race.folder)
    _searcher(race, benchmark)
    _check_metrics(benchmark, race.goals, race.protocol.fidelity)
    if race.protocol.budget_s is not None:
        benchmark.seconds(benchmark.space.sample(rng(race.seed, "check")), race.protocol.fidelity)


def run_race(
    race: Race, *, repeats: int, workers: int | None = None, on_repeat: Callable[[int], None] = lambda _: None
) -> Runs:
    """Repeats a search with seeds of its own in each of `workers` processes, by default one for each core.

    The outcome does not depend on the number of processes.

    Raises:
        NoModelError: when no trial of any repeat succeeded.
    """
    if repeats < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"benchmark: got {repeats} repeats and {workers} workers, wanted at least 1")
    check_race(race)
    seeds = [derive(race.seed, "repeat", number) for number in range(repeats)]
    outcomes = []
    for outcome in _outcomes(race, seeds, min(repeats, workers or os.cpu_count() or 1)):
        outcomes.append(outcome)
        on_repeat(len(outcomes))
    longest = max(len(values) for values, _, _ in outcomes)
    if all(np.isnan(values[-1]) for values, _, _ in outcomes):
        raise NoModelError(f"{race.searcher}: every trial failed, the first by {outcomes[0][2][0].reason}")
    return Runs(
        np.stack([_extended(values, longest) for values, _, _ in outcomes]),
        np.stack([_extended(seconds, longest) for _, seconds, _ in outcomes]),
        np.array([len(values) for values, _, _ in outcomes]),
        outcomes[0][2],
    )


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
    for part, objective in zip(parts, goals.objectives, strict=True):
        match = _COORDINATE.fullmatch(part)
        if match is None:
            raise ConfigError(f"reference {text!r}: {part!r} is no number, such as 0.15 or 1.5m")
        number = float(match[1])
        if match[2]:
            every = [objective.value(metrics) for metrics in _measured(benchmark, goals, fidelity)]
            number *= float(np.median(every))
        point.append(number)
    return tuple(point)


def _check_metrics(benchmark: Benchmark, goals: Goals, fidelity: int) -> None:
    draw = rng(0, "figures")
    known: set[str] = set()
    for _ in range(LOOKED_AT):
        with suppress(TrialError):
            known.update(benchmark.metrics(benchmark.space.sample(draw), fidelity))
    for name in goals.metrics:
        if name not in known:
            raise ConfigError(unknown(f"metric of {benchmark.name}", name, known))


def _measured(benchmark: Benchmark, goals: Goals, fidelity: int) -> list[Mapping[str, float]]:
    """The figures of every architecture that has all those that the goals need."""
    if benchmark.space.size.count > ENUMERABLE:
        raise ConfigError(f"{benchmark.name} is too large for its exact front; use one objective")
    _check_metrics(benchmark, goals, fidelity)
    found = []
    for genotype in benchmark.space.enumerate():
        with suppress(TrialError):
            found.append(looked_up(benchmark, genotype, fidelity, goals.metrics))
    return found


Outcome = tuple[NDArray[np.float64], NDArray[np.float64], list[Trial]]


def _outcomes(race: Race, seeds: Sequence[int], workers: int) -> Iterator[Outcome]:
    """One outcome for each seed, in order; only the first keeps its history."""
    exact = _exact(race) if len(race.goals.objectives) > 1 else 1.0
    one = functools.partial(_repeat, race, first=seeds[0], exact=exact)
    if workers == 1:
        yield from map(one, seeds)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_single_threaded)
    try:
        yield from pool.map(one, seeds, chunksize=max(1, min(10, len(seeds) // (4 * workers))))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _repeat(race: Race, seed: int, *, first: int, exact: float) -> Outcome:
    benchmark = _loaded(race.benchmark, race.dataset, race.folder)
    searcher, needed = _searcher(race, benchmark), race.goals.metrics
    history = simulate(benchmark, searcher, race.protocol, seed=seed, needed=needed)
    if len(race.goals.objectives) == 1:
        values = incumbents(history, race.goals, benchmark.report)
    else:
        values = _volumes(history, race.goals, race.reference, exact)
    seconds = np.cumsum([trial.cost_s for trial in history])
    return values, seconds, history if seed == first else []


def _volumes(
    history: Sequence[Trial], goals: Goals, reference: Sequence[float], exact: float
) -> NDArray[np.float64]:
    """The share `[T]` of the exact front's hypervolume after 1 to T trials; NaN before the first success."""
    point = _turned(reference, goals)
    found, share = np.empty((0, len(point))), np.nan
    values = np.empty(len(history))
    for position, trial in enumerate(history):
        if trial.state == "done" and np.isnan(share):
            share = 0.0  # until one of the successes keeps all bounds and is beyond the reference
        if trial.state == "done" and goals.violation(trial.metrics) == 0:
            scores = np.array([goals.scores(trial.metrics)])
            if not dominates(found, scores).any():
                found = np.concatenate([found, scores])
                share = hypervolume(found, point) / exact
        values[position] = share
    return values


def _exact(race: Race) -> float:
    benchmark = _loaded(race.benchmark, race.dataset, race.folder)
    scores = exact_front(benchmark, race.goals, race.protocol.fidelity)
    volume = hypervolume(scores, _turned(race.reference, race.goals))
    if volume == 0:
        raise ConfigError(
            f"reference {race.reference}: no architecture of {benchmark.name} is better in every objective; "
            "give a worse point"
        )
    return volume


def _turned(reference: Sequence[float], goals: Goals) -> NDArray[np.float64]:
    return np.array([o.better(value) for o, value in zip(goals.objectives, reference, strict=True)])


@functools.cache
def _loaded(benchmark: str, dataset: str | None, folder: Path | None) -> Benchmark:
    return load_benchmark(benchmark, dataset=dataset, folder=folder)


def _searcher(race: Race, benchmark: Benchmark) -> Searcher:
    settings: Mapping[str, object] = dict(race.settings)

    def size(genotype: tuple[int, ...]) -> float:
        return benchmark.metrics(genotype, race.protocol.fidelity)["params"]

    return make_searcher(race.searcher, settings, goals=race.goals, size=size)


def _single_threaded() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)


def _extended(row: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    return np.pad(row, (0, length - len(row)), mode="edge")
