"""A searcher whose first proposal is a known architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas.searchers.searcher import Searcher
from nas.space.space import Space
from nas.types import Genotype, Trial


@dataclass(frozen=True)
class DefaultFirst:
    """Proposes `default` while nothing was tried, then what `searcher` does, which sees it in the history."""

    searcher: Searcher
    default: Genotype

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """The next architecture."""
        return self.searcher.ask(space, history, rng) if history else self.default
