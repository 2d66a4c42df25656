"""Guided evolution: a surrogate fitted to the history picks the most promising of many mutations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.searchers.goals import Goals
from nas.searchers.searcher import tried, unseen
from nas.searchers.surrogate import normal_ranks, promise, surrogate
from nas.space.cost import count_params
from nas.space.encodings import features
from nas.space.space import Space, remembered
from nas.types import Genotype, Trial

WARM, COUNTED, RANDOM, MUTANTS = 1000, 200, 40, 30
"""Drawn for `largest`, and where sizes must be counted; random candidates; mutants of a parent."""
Describe = Callable[[Genotype], Sequence[float]]
"""Numbers about an architecture that need no training: its size, its proxies."""


@dataclass(frozen=True)
class Guided:
    """Bayesian optimisation over architectures, with evolution proposing the candidates.

    After BANANAS (White et al. 2021, AAAI): candidates are mutations of the best trials, the surrogate sees
    paths. Deviations: a Gaussian process, from the first trial on, in place of five networks, and what
    `nas.searchers.surrogate` says in place of independent Thompson sampling.

    init: random architectures in the beginning.
    largest: how many of these are the largest among 1,000 random ones in all (200 without `size`).
    surrogate: `gp`, `forest` or `ridge`.
    acquisition: `ei`, or `thompson`, which suits many workers; a Pareto search always draws.
    parents: how many of the best are mutated; with several objectives, as many of the front.
    size: what `largest` goes by; the number of parameters unless given.
    describe: further features of an architecture, known without training it.
    earlier: finished trials of another search in the same space, which the surrogate learns from too.
    goals: objectives and constraints.
    """

    init: int = 10
    largest: int = 0
    surrogate: Literal["gp", "forest", "ridge"] = "gp"
    acquisition: Literal["ei", "thompson"] = "ei"
    parents: int = 5
    size: Callable[[Genotype], float] | None = None
    describe: Describe | None = None
    earlier: tuple[Trial, ...] = ()
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        surrogate(self.surrogate)
        if self.acquisition not in ("ei", "thompson"):
            raise ConfigError(f"guided: acquisition is {self.acquisition!r}, but must be ei or thompson")
        if self.init < 2 or self.parents < 1:
            raise ConfigError(
                f"guided: init is {self.init} and parents {self.parents}, wanted at least 2 and 1"
            )
        if not 0 <= self.largest <= self.init:
            raise ConfigError(f"guided: largest is {self.largest}, but must be at most init, {self.init}")

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """The most promising candidate; a random architecture while there are few trials."""
        if sum(trial.state == "done" for trial in history) < self.init:
            return self._first(space, history, rng)
        done = [trial for trial in (*self.earlier, *history) if trial.state == "done"]
        candidates = self._candidates(space, history, done, rng)
        if not candidates:
            return unseen(space, history, rng, propose=lambda: space.sample(rng))
        blocks = self._blocks(space, [*(trial.genotype for trial in done), *candidates])
        fit = surrogate(self.surrogate)
        worth = promise(self.goals, done, blocks, fit=fit, kind=self.acquisition, rng=rng)
        return candidates[int(np.argmax(worth))]

    def _first(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        if len(history) >= self.largest:
            return unseen(space, history, rng, propose=lambda: space.sample(rng))
        size = self.size or functools.partial(_params, space)
        pool = COUNTED if self.size is None else WARM
        drawn = {space.sample(rng) for _ in range(pool // self.largest)}
        by_size = iter(sorted(drawn, key=size, reverse=True))
        return unseen(space, history, rng, propose=lambda: next(by_size, space.sample(rng)))

    def _candidates(
        self, space: Space, history: Sequence[Trial], done: Sequence[Trial], rng: np.random.Generator
    ) -> list[Genotype]:
        """New neighbours of the best, some of their mutations, and random ones."""
        parents = self._parents(done, rng)
        near = [mutant for parent in parents for mutant in _mutants(space, parent, rng)]
        farther = [space.mutate(near[i], rng) for i in rng.integers(len(near), size=10 * len(parents))]
        drawn = [space.sample(rng) for _ in range(RANDOM)]
        return sorted({*near, *farther, *drawn} - tried(space, history))

    def _parents(self, done: Sequence[Trial], rng: np.random.Generator) -> list[Genotype]:
        """The best trials, or some of the front at random."""
        ordered = self.goals.ordered(done)
        if len(self.goals.objectives) == 1 or not (best := self.goals.front(done)):
            return [trial.genotype for trial in ordered[: self.parents]]
        chosen = rng.permutation(len(best))[: 2 * self.parents]
        return [best[i].genotype for i in chosen]

    def _blocks(self, space: Space, genotypes: Sequence[Genotype]) -> list[NDArray[np.float64]]:
        blocks = features(space, genotypes)
        if self.describe is None:
            return blocks
        described = np.array([self.describe(genotype) for genotype in genotypes], dtype=np.float64)
        return [*blocks, np.apply_along_axis(normal_ranks, 0, described)]


@remembered
def _params(space: Space, genotype: Genotype) -> float:
    return float(count_params(space.network(genotype, meta=True)))


def _mutants(space: Space, parent: Genotype, rng: np.random.Generator) -> list[Genotype]:
    """All neighbours where there are few, else random mutations."""
    if sum(len(d.options) - 1 for d in space.decisions) <= MUTANTS:
        return space.neighbours(parent)
    return [space.mutate(parent, rng) for _ in range(MUTANTS)]
