"""What a scheduler proposes to try next, checked."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np

from nas.errors import FAULTS, ConfigError, NasError, describe, staying
from nas.searchers.scheduler import Scheduler
from nas.space.space import Space
from nas.types import Genotype, Trial


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
