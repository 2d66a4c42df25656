"""Evolution in generations, as single-path one-shot search does it on shared weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.searchers.goals import Goals
from nas.searchers.searcher import TURNED_DOWN, unseen
from nas.space.space import Space
from nas.types import Genotype, Trial


@dataclass(frozen=True)
class Generational:
    """Guo et al., ECCV 2020 (SPOS), algorithm 1: the best so far have children by mutation and crossover.

    population: trials of a generation, the first one random. parents: the best of all earlier generations.
    mutations, crossovers: children of each kind as shares of a generation, rounded; the rest is random again
      (as in the code, which has 25 of each in 50).
    rate: probability of each decision to be drawn anew in a mutation.

    Deviation: an architecture is never tried twice, which the code ensures within a generation only.
    """

    population: int = 50
    parents: int = 10
    mutations: float = 0.5
    crossovers: float = 0.5
    rate: float = 0.1
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        if self.population < 2 or not 1 <= self.parents <= self.population:
            raise ConfigError(
                f"spos: population is {self.population} and parents {self.parents}; wanted at least 2, and "
                "from 1 to the population"
            )
        shares = (self.mutations, self.crossovers)
        if not (min(shares) >= 0 and sum(shares) <= 1 and 0 < self.rate <= 1):
            raise ConfigError(
                f"spos: got mutations {self.mutations}, crossovers {self.crossovers} and rate {self.rate}; "
                "wanted shares of a generation, together at most 1, and a rate in (0, 1]"
            )
        self.goals.only("spos")

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """The next child."""
        # What a bound turned down took no place in a generation.
        tried = [t for t in history if t.reason != TURNED_DOWN]
        generation, place = divmod(len(tried), self.population)
        earlier = [t for t in tried[: generation * self.population] if t.state == "done"]
        best = self.goals.ordered(earlier)[: self.parents]
        return unseen(space, history, rng, propose=lambda: self._child(space, best, place, rng))

    def _child(self, space: Space, best: Sequence[Trial], place: int, rng: np.random.Generator) -> Genotype:
        mutated = round(self.mutations * self.population)
        if not best or place >= mutated + round(self.crossovers * self.population):
            return space.sample(rng)
        mother, father = (best[int(i)].genotype for i in rng.integers(len(best), size=2))
        if place >= mutated:
            return space.cross(mother, father, rng)
        scores = [self._mutated(row, rng) for row in space.one_hot(mother)]
        return space.canonical(space.nearest(scores))

    def _mutated(self, row: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """One decision drawn anew or not, with some noise that decides what `project` has to."""
        drawn = np.eye(len(row))[rng.integers(len(row))] if rng.random() < self.rate else row
        return drawn + 1e-3 * rng.random(len(row))
