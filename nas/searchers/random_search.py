"""Random search: the baseline that every other searcher must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas.searchers.searcher import unseen
from nas.space.space import Space
from nas.types import Genotype, Trial


@dataclass(frozen=True)
class RandomSearch:
    """Uniform sampling without repeats."""

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """A random architecture that is not in the history."""
        return unseen(space, history, rng, propose=lambda: space.sample(rng))
