"""Schedulers: a searcher says what to try next, a scheduler says how long to train it.

Successive halving gives many architectures little training, and the best of them ever more. It is
asynchronous: a worker that asks never waits for others to finish a rung. Like searchers, schedulers are pure
functions of the history, in which each promotion is a trial of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral
from typing import Protocol

import numpy as np

from nas.errors import FAULTS, ConfigError, ExhaustedError, NasError, counted, describe, staying
from nas.searchers.fidelity import Ladder
from nas.searchers.goals import Goals
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
        case (tuple() as options, int() as fidelity) if fidelity >= 0 and not isinstance(fidelity, bool):
            if all(isinstance(option, Integral) for option in options):
                genotype = tuple(map(int, options))
                space.check(genotype)
                return Trial(number, genotype, fidelity, beside=beside)
    raise ConfigError(
        f"study {study!r}: {name} proposed {proposal}, wanted a genotype, the number of an option for each "
        "decision, and its epochs; Fixed(searcher, epochs) makes a scheduler of a searcher"
    )


# -- successive halving --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Promoting(ABC):
    """What both schedulers are made of.

    searcher: proposes new architectures; it sees what `comparable` gives.
    ladder: what each rung may spend.
    eta: one in `eta` of a rung's finished trials is promoted.
    goals: what is better; with several objectives, by front and then by crowding.
    enough: finished trials that a rung must have before the searcher is shown it; no fewer than the searcher
      draws at random in the beginning, or it would draw at random again.
    """

    searcher: Searcher
    ladder: Ladder
    eta: int = 3
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value
    enough: int = 20

    def __post_init__(self) -> None:
        if self.eta < 2 or self.enough < 1:
            raise ConfigError(
                f"{type(self).__name__}: eta is {self.eta} and enough {self.enough}, but must be at least 2 "
                "and 1"
            )

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> tuple[Genotype, int]:
        """A promotion where one is due, else a new architecture.

        Raises:
            ExhaustedError: when no promotion is due and the searcher has nothing left.
        """
        granted = self.ladder.granted
        for fidelity in {trial.fidelity for trial in history}:
            self.ladder.rung(fidelity)
        brackets = self.brackets(history)
        for first, trials in enumerate(brackets):
            due = promotion(trials, granted[first:], eta=self.eta, goals=self.goals)
            if due is not None:
                return due
        spent = [epochs_granted(trials, granted) for trials in brackets]
        genotype = self.searcher.ask(space, comparable(history, granted, enough=self.enough), rng)
        return genotype, granted[spent.index(min(spent))]

    @abstractmethod
    def brackets(self, history: Sequence[Trial]) -> Sequence[Sequence[Trial]]:
        """The trials of each bracket; bracket b begins at rung b."""


@dataclass(frozen=True)
class SuccessiveHalving(_Promoting):
    """ASHA, the asynchronous successive halving of Li et al. 2020 (MLSys), Algorithm 2.

    A promotion goes from the highest rung possible; a new architecture begins at the lowest. Deviation from
    the paper: any searcher in place of random sampling.
    """

    def brackets(self, history: Sequence[Trial]) -> Sequence[Sequence[Trial]]:
        """A single one."""
        return [history]


@dataclass(frozen=True)
class Hyperband(_Promoting):
    """Hyperband of Li et al. 2018 (JMLR), Algorithm 1, over asynchronous brackets (Li et al. 2020, §3.3).

    Each bracket is a successive halving that begins at another rung of the ladder, which guards against cheap
    rungs that mislead; those of the lowest are promoted first.

    An architecture's bracket is that of its first trial. A new one goes to the bracket that has been granted
    the fewest epochs, so that all get the same budget, as in the paper; of equal ones, to the lowest.
    """

    def brackets(self, history: Sequence[Trial]) -> Sequence[Sequence[Trial]]:
        """One for each rung, of the architectures whose first trial was there."""
        granted, bracket_of = self.ladder.granted, dict[Genotype, int]()
        brackets: list[list[Trial]] = [[] for _ in granted]
        for trial in history:
            bracket = bracket_of.setdefault(trial.genotype, granted.index(trial.fidelity))
            brackets[bracket].append(trial)
        return brackets


def promotion(
    trials: Sequence[Trial], granted: Sequence[int], *, eta: int, goals: Goals
) -> tuple[Genotype, int] | None:
    """The best architecture that may climb, from the highest rung possible, and the epochs granted there.

    That is one among the best 1/eta of the ended trials of its rung that has no trial, in any state, one rung
    higher. A failed trial counts as ended, but never climbs. Of equal ones the earlier comes first.
    """
    for rung, above in reversed(list(pairwise(granted))):
        ended = [t for t in trials if t.fidelity == rung and t.state != "running"]
        best = goals.ordered([t for t in ended if t.state == "done"])[: len(ended) // eta]
        climbed = {t.genotype for t in trials if t.fidelity == above}
        for trial in best:
            if trial.genotype not in climbed:
                return trial.genotype, above
    return None


def comparable(history: Sequence[Trial], granted: Sequence[int], *, enough: int) -> list[Trial]:
    """The history as a searcher should see it: each architecture once, its result at one fidelity for all.

    The fidelity is the highest with `enough` finished trials, else the lowest, as in BOHB (Falkner et al.
    2018, ICML, section 4.1): what was trained for longer is better for that alone. Whatever has no result
    there is listed as failed, or as running, and so will not be proposed again.
    """
    done = [t for t in history if t.state == "done"]
    rich = [f for f in granted if sum(t.fidelity == f for t in done) >= enough]
    shown = rich[-1] if rich else granted[0]
    last = {t.genotype: t for t in history} | {t.genotype: t for t in history if t.fidelity == shown}
    seen = sorted(last.values(), key=lambda t: t.number)
    reason = f"unmeasured: after {counted(shown, 'epoch')}"
    return [
        t
        if t.state != "done" or t.fidelity == shown
        else replace(t, state="failed", metrics={}, reason=reason)
        for t in seen
    ]


def epochs_granted(trials: Sequence[Trial], granted: Sequence[int]) -> int:
    """Epochs given to all trials: to each its own rung's, to an architecture's first those below it too."""
    before = dict(zip(granted, (0, *granted), strict=False))
    first = {t.genotype: t.number for t in reversed(trials)}
    return sum(t.fidelity - (0 if t.number == first[t.genotype] else before[t.fidelity]) for t in trials)


def finalists(history: Sequence[Trial], goals: Goals) -> list[Trial]:
    """Each architecture's highest finished trial, best first: the higher rung, then the goals, decide.

    What breaks a constraint comes after all that keep them, however high it climbed while there was no other.
    """
    done = [t for t in history if t.state == "done"]
    highest = {t.genotype: t for t in sorted(reversed(done), key=lambda t: t.fidelity)}
    earlier_first = sorted(highest.values(), key=lambda t: t.number)
    climbed = [
        t
        for rung in sorted({t.fidelity for t in earlier_first}, reverse=True)
        for t in goals.ordered([t for t in earlier_first if t.fidelity == rung])
    ]
    return sorted(climbed, key=lambda t: goals.violation(t.metrics) > 0)
