"""Schedulers: a searcher says what to try next, a scheduler says how long to train it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol

import numpy as np

from nas.errors import FAULTS, ConfigError, ExhaustedError, NasError, describe, staying
from nas.searchers.searcher import Searcher
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


def propose(
    scheduler: Scheduler,
    space: Space,
    history: Sequence[Trial],
    rng: np.random.Generator,
    *,
    beside: tuple[int, ...],
    study: str,
) -> Trial:
    """The next trial after all of `history`.

    beside: the numbers of those that are under way. study: what errors call the study.

    Raises:
        ConfigError: when the scheduler fails, or what it proposes is no genotype with its epochs.
        ExhaustedError: when there is nothing left to try.
    """
    name, number = type(scheduler).__name__, len(history)
    try:
        with staying():
            proposal: object = scheduler.ask(space, history, rng)
    except NasError:
        raise
    except FAULTS as error:
        raise ConfigError(
            f"study {study!r}: {name} failed to propose trial {number}: {describe(error)}; "
            "nas.testing.check_searcher checks a searcher"
        ) from error
    match proposal:
        case (tuple() as genotype, int() as fidelity) if fidelity >= 0 and not isinstance(fidelity, bool):
            return Trial(
                number, _checked(genotype, space, f"study {study!r}: {name}"), fidelity, beside=beside
            )
    raise ConfigError(
        f"study {study!r}: {name} proposed {proposal}, wanted a genotype and its epochs; "
        "Fixed(searcher, epochs) makes a scheduler of a searcher"
    )


def _checked(proposed: tuple[object, ...], space: Space, who: str) -> Genotype:
    """A proposed genotype of plain ints, each an option of its decision."""
    if not all(isinstance(option, Integral) for option in proposed):
        raise ConfigError(f"{who} proposed {proposed}, wanted the number of an option for each decision")
    genotype = tuple(int(option) for option in proposed if isinstance(option, Integral))
    space.check(genotype)
    return genotype
