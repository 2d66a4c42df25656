"""NSGA-II: evolution towards a Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas.errors import ConfigError
from nas.searchers.goals import Goals, selection_order
from nas.searchers.searcher import unseen
from nas.space.encodings import crossover_groups
from nas.space.space import Space
from nas.types import Genotype, Trial


@dataclass(frozen=True)
class Nsga2:
    """Deb et al. 2002 (IEEE TEC), §III, with the constraint domination of §VI-A.

    population: how many of the best trials may become parents; the first ones are random.
    crossover: probability that a child has two parents; else it is a mutation of one.
    goals: objectives and constraints; with a single objective it is an elitist evolution.

    Deviations from the paper: the parents are chosen from the whole history, which is the paper's survivor
    selection with an archive that forgets nobody, and children are made one at a time, as workers ask; since
    decisions are categorical, a child takes each decision, or by an even chance all decisions into one node
    of a cell, from one of its parents, and is mutated too; a child that is in the history is drawn again.
    """

    population: int = 50
    crossover: float = 0.9
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        if self.population < 2:
            raise ConfigError(f"nsga2: population is {self.population}, but must be at least 2")
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
        groups = crossover_groups(space) if rng.random() < 0.5 else None
        return space.mutate(space.cross(mother, father, rng, groups=groups), rng)
