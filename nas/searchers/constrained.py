"""A searcher that keeps to architectures which are known, before any training, to hold all bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas.errors import ConfigError, ExhaustedError
from nas.searchers.searcher import TURNED_DOWN, Searcher
from nas.space.space import Space
from nas.types import Genotype, Trial


@dataclass(frozen=True)
class Bounded:
    """Asks another searcher again while its proposal breaks a bound.

    The searcher sees what was turned down as failed trials, so that it does not propose it again.

    holds: whether an architecture keeps the bounds that can be checked without training it.
    tries: after so many, at least 1, or where all is tried, the last proposal is returned as it is, so that a
      bound that nothing holds shows.
    """

    searcher: Searcher
    holds: Callable[[Genotype], bool]
    tries: int = 100

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ConfigError(f"bounded: tries is {self.tries}, but must be at least 1")

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """The first proposal that holds, from one stream of random numbers."""
        known = list(history)
        for _ in range(self.tries):
            try:
                genotype = self.searcher.ask(space, known, rng)
            except ExhaustedError:
                if len(known) == len(history):
                    raise
                break
            if self.holds(genotype):
                return genotype
            known.append(Trial(len(known), genotype, state="failed", reason=TURNED_DOWN))
        return known[-1].genotype
