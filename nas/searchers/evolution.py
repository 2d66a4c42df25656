"""Evolutionary searchers: ageing evolution, generations (as in SPOS), and NSGA-II towards a Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.searchers.goals import Goals, selection_order
from nas.searchers.searcher import TURNED_DOWN, tried, unseen
from nas.space.network_morphism import additions
from nas.space.space import Space
from nas.types import Genotype, Trial


@dataclass(frozen=True)
class RegularizedEvolution:
    """Ageing evolution (Real et al. 2019, AAAI, Algorithm 1).

    population: how many of the youngest finished trials are alive; the first ones are random.
    tournament: how many of them, drawn without repeats, compete to be the parent.
    goals: what decides a tournament.
    morphism: probability in [0, 1] that a mutation is drawn among the parent's additions, where any is new
      (`nas.space.network_morphism.additions`), so that the child can go on from the parent's weights.

    The defaults are the best for up to 500 trials on NAS-Bench-201; the paper's are 100 and 25. Deviations:
    the tournament is drawn without repeats, in the paper with them, so that one of the whole population is
    always won by its best; a child that is already in the history is drawn again.
    """

    population: int = 10
    tournament: int = 10
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value
    morphism: float = 0.0

    def __post_init__(self) -> None:
        self.goals.only("evolution")
        _check_population("evolution", self.population)
        if not 1 <= self.tournament <= self.population:
            raise ConfigError(
                f"evolution: tournament is {self.tournament}, but must be at least 1 and at most "
                f"population, {self.population}"
            )
        if not 0.0 <= self.morphism <= 1.0:
            raise ConfigError(f"evolution: morphism is {self.morphism}, but must be in [0, 1]")

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """A mutation of the tournament's winner; a random architecture while the population fills."""
        alive = [trial for trial in history if trial.state == "done"][-self.population :]
        if len(alive) < self.population:
            return unseen(space, history, rng, propose=lambda: space.sample(rng))
        rivals = rng.choice(len(alive), self.tournament, replace=False)
        parent = max((alive[i] for i in rivals), key=self.goals.fitness)
        # At 0 nothing more is drawn, so that earlier studies repeat bit for bit.
        if self.morphism and rng.random() < self.morphism:
            seen = tried(space, history)
            if new := [child for child in additions(space, parent.genotype) if child not in seen]:
                return new[int(rng.integers(len(new)))]
        return unseen(space, history, rng, propose=lambda: space.mutate(parent.genotype, rng))


@dataclass(frozen=True)
class Generational:
    """Evolution in generations (Guo et al. 2020, ECCV, SPOS, Algorithm 1): children of the best so far.

    population: trials of a generation, the first one random.
    parents: how many of the best of all earlier generations have children.
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
        self.goals.only("spos")
        _check_population("spos", self.population)
        if not 1 <= self.parents <= self.population:
            raise ConfigError(
                f"spos: parents is {self.parents}, but must be from 1 to population, {self.population}"
            )
        shares = (self.mutations, self.crossovers)
        if not (min(shares) >= 0 and sum(shares) <= 1 and 0 < self.rate <= 1):
            raise ConfigError(
                f"spos: got mutations {self.mutations}, crossovers {self.crossovers} and rate {self.rate}; "
                "wanted shares of a generation, together at most 1, and a rate in (0, 1]"
            )

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """The next child."""
        # What a bound turned down took no place in a generation.
        known = [t for t in history if t.reason != TURNED_DOWN]
        generation, place = divmod(len(known), self.population)
        earlier = [t for t in known[: generation * self.population] if t.state == "done"]
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


@dataclass(frozen=True)
class Nsga2:
    """NSGA-II (Deb et al. 2002, IEEE TEC, §III), with the constraint domination of §VI-A.

    population: how many of the best trials may become parents; the first ones are random.
    crossover: probability that a child has two parents; else it is a mutation of one.
    goals: objectives and constraints; with a single objective it is an elitist evolution.

    Deviations from the paper: the parents are chosen from the whole history, which is the paper's survivor
    selection with an archive that forgets nobody, and children are made one at a time, as workers ask; since
    decisions are categorical, a child takes each decision from one of its parents, and is mutated too; a
    child that is in the history is drawn again.
    """

    population: int = 50
    crossover: float = 0.9
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        _check_population("nsga2", self.population)
        if not 0 <= self.crossover <= 1:
            raise ConfigError(f"nsga2: crossover is {self.crossover}, but must be in [0, 1]")

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """A child of the best trials; a random architecture while the population fills."""
        done = [trial for trial in history if trial.state == "done"]
        if len(done) < self.population:
            return unseen(space, history, rng, propose=lambda: space.sample(rng))
        order = selection_order(*self.goals.table(done))[: self.population]
        parents = [done[i].genotype for i in order]
        return unseen(space, history, rng, propose=lambda: self._child(space, parents, rng))

    def _child(self, space: Space, parents: Sequence[Genotype], rng: np.random.Generator) -> Genotype:
        """Parents come best first, so the smaller of two places wins a binary tournament."""
        mother, father = (parents[int(rng.integers(len(parents), size=2).min())] for _ in range(2))
        if rng.random() >= self.crossover:
            return space.mutate(mother, rng)
        return space.mutate(space.cross(mother, father, rng), rng)


def _check_population(who: str, population: int) -> None:
    if population < 2:
        raise ConfigError(f"{who}: population is {population}, but must be at least 2")
