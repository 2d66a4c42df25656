"""Local search: walks from neighbour to better neighbour, and starts anew where no neighbour is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas.errors import ConfigError
from nas.searchers.goals import Goals
from nas.searchers.searcher import tried, unseen
from nas.space.space import Space
from nas.types import Genotype, Trial


@dataclass(frozen=True)
class LocalSearch:
    """White et al. 2021 (UAI, "Exploring the Loss Landscape in NAS"), Algorithm 1, with first improvement.

    init: random architectures in the beginning; the walk starts at the best of them.
    goals: what is better.

    The walk is read off the history: a finished trial better than where the walk stands moves it there. Where
    every neighbour has been tried, a new walk starts at a random architecture. Deviations: an architecture is
    never tried twice, so a walk does not come back to where another has been; the released code draws `init`
    architectures for every new walk.
    """

    init: int = 10
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        self.goals.only("local search")
        if self.init < 1:
            raise ConfigError(f"local search: init is {self.init}, but must be at least 1")

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """A random untried neighbour of where the walk stands, or a random architecture to start from."""
        done = [trial for trial in history if trial.state == "done"]
        place = self._place(space, history) if len(done) >= self.init else None
        if place is None:
            return unseen(space, history, rng, propose=lambda: space.sample(rng))
        seen = tried(space, history)
        untried = [n for n in space.neighbours(place.genotype) if n not in seen]
        return untried[int(rng.integers(len(untried)))]

    def _place(self, space: Space, history: Sequence[Trial]) -> Trial | None:
        """Where the walk stands after the history; None when a new one must start."""
        place: Trial | None = None
        seen: set[Genotype] = set()
        first: list[Trial] = []
        for trial in history:
            seen.add(space.canonical(trial.genotype))
            if trial.state == "done":
                if len(first) < self.init:
                    first.append(trial)
                    place = max(first, key=self.goals.fitness) if len(first) == self.init else None
                elif place is None or self.goals.fitness(trial) > self.goals.fitness(place):
                    place = trial
            if place is not None and seen.issuperset(space.neighbours(place.genotype)):
                place = None
        return place
