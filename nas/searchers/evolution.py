"""Regularised (ageing) evolution: the youngest trials are the population, one mutation makes a child."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas.errors import ConfigError
from nas.searchers.goals import Goals
from nas.searchers.searcher import tried, unseen
from nas.space.network_morphism import additions
from nas.space.space import Space
from nas.types import Genotype, Trial


@dataclass(frozen=True)
class RegularizedEvolution:
    """Real et al. 2019 (AAAI), Algorithm 1.

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
        if self.population < 2:
            raise ConfigError(f"evolution: population is {self.population}, but must be at least 2")
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
