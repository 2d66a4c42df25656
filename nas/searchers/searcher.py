"""What a searcher is, and how one never proposes the same architecture twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from nas.errors import ExhaustedError
from nas.space.space import ENUMERABLE, Space
from nas.types import Genotype, Trial

TRIES = 100
TURNED_DOWN = "bound"
"""Reason of a stand-in for what a bound turned down, which is no trial of the study."""


class Searcher(Protocol):
    """Proposes the next architecture. Holds settings only; all state is the history."""

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """Returns a genotype to evaluate; `history` holds every trial so far, in order of their numbers."""


def tried(space: Space, history: Sequence[Trial]) -> set[Genotype]:
    """Every architecture of the history in canonical form, the running and failed ones too."""
    return {space.canonical(trial.genotype) for trial in history}


def unseen(
    space: Space, history: Sequence[Trial], rng: np.random.Generator, *, propose: Callable[[], Genotype]
) -> Genotype:
    """The first proposal that is new in canonical form, or else any new architecture.

    Raises:
        ExhaustedError: when every architecture has been tried, or no new one can be found.
    """
    seen = tried(space, history)
    for draw in (propose, lambda: space.sample(rng)):
        for _ in range(TRIES):
            genotype = draw()
            if genotype not in seen:
                return genotype
    if space.size.exact and space.size.count <= max(ENUMERABLE, len(seen)):
        left = [genotype for genotype in space.enumerate() if genotype not in seen]
        if left:
            return left[int(rng.integers(len(left)))]
        raise ExhaustedError(f"all {len(seen)} architectures of space {space.name!r} have been tried")
    raise ExhaustedError(f"no new architecture of space {space.name!r} in {2 * TRIES} draws")
