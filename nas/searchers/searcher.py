"""What a searcher is, how one never proposes the same architecture twice, and the simplest: random, local."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nas.errors import ConfigError, ExhaustedError
from nas.searchers.goals import Goals
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


@dataclass(frozen=True)
class RandomSearch:
    """Uniform sampling without repeats: the baseline that every other searcher must beat."""

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """A random architecture that is not in the history."""
        return unseen(space, history, rng, propose=lambda: space.sample(rng))


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
        place = self._place(space, history)
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


@dataclass(frozen=True)
class DefaultFirst:
    """Proposes `default` while nothing was tried, then what `searcher` does, which sees it in the history."""

    searcher: Searcher
    default: Genotype

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """The next architecture."""
        return self.searcher.ask(space, history, rng) if history else self.default


@dataclass(frozen=True)
class Bounded:
    """Asks another searcher again while its proposal breaks a bound.

    The searcher sees what was turned down as failed trials, so that it does not propose it again.

    holds: whether an architecture, after the history, keeps the bounds that can be checked without training.

    After `TRIES` of them, or where all is tried, the last proposal is returned as it is, so that a bound that
    nothing holds shows.
    """

    searcher: Searcher
    holds: Callable[[Genotype, Sequence[Trial]], bool]

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """The first proposal that holds, from one stream of random numbers."""
        known = list(history)
        for _ in range(TRIES):
            try:
                genotype = self.searcher.ask(space, known, rng)
            except ExhaustedError:
                if len(known) == len(history):
                    raise
                break
            if self.holds(genotype, history):
                return genotype
            known.append(Trial(len(known), genotype, state="failed", reason=TURNED_DOWN))
        return known[-1].genotype
