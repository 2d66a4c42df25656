"""Schedulers: a searcher says what to try next, a scheduler says how long to train it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nas.errors import ExhaustedError
from nas.searchers import Searcher
from nas.space.space import Space
from nas.types import Genotype, Trial


class Scheduler(Protocol):
    """Decides the next evaluation. Like a searcher, a pure function of the history."""

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> tuple[Genotype, int]:
        """Returns a genotype and its fidelity in training epochs."""


@dataclass(frozen=True)
class Fixed:
    """Gives every proposal the same number of epochs."""

    searcher: Searcher
    epochs: int = 0

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> tuple[Genotype, int]:
        """The searcher's proposal and `epochs`."""
        return self.searcher.ask(space, history, rng), self.epochs


@dataclass(frozen=True)
class Listed:
    """Evaluates given architectures in turn, for a re-evaluation with fresh seeds.

    genotypes: what to evaluate, `repeats` times each, round by round.
    """

    genotypes: tuple[Genotype, ...]
    epochs: int
    repeats: int = 1

    def ask(
        self,
        space: Space,  # noqa: ARG002 - a scheduler's signature
        history: Sequence[Trial],
        rng: np.random.Generator,  # noqa: ARG002 - a scheduler's signature
    ) -> tuple[Genotype, int]:
        """The next of the list.

        Raises:
            ExhaustedError: at its end.
        """
        if len(history) >= self.repeats * len(self.genotypes):
            raise ExhaustedError(
                f"all {len(self.genotypes)} architectures were evaluated {self.repeats} times"
            )
        return self.genotypes[len(history) % len(self.genotypes)], self.epochs
