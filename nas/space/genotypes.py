"""Genotypes beside the decisions that they answer: checked, and from words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np

from nas.errors import SpaceError, unknown
from nas.text import shown
from nas.types import Decision, Genotype


def check_genotype(genotype: Genotype, decisions: Sequence[Decision], *, space: str) -> None:
    """Raises SpaceError unless `genotype` has one option index in range for every decision."""
    if len(genotype) != len(decisions):
        raise SpaceError(f"space {space!r} has {len(decisions)} decisions, got a genotype of {len(genotype)}")
    for d, option in zip(decisions, genotype, strict=True):
        if isinstance(option, bool) or not isinstance(option, int | np.integer):
            raise SpaceError(
                f"decision {d.name!r} got {shown(option)}, a {type(option).__name__}; a genotype has one "
                "option index for each decision, a whole number"
            )
        if not 0 <= option < len(d.options):
            raise SpaceError(
                f"decision {d.name!r} got option {option}, but its {len(d.options)} options are 0 to "
                f"{len(d.options) - 1}"
            )


def from_words(choices: Mapping[str, str], decisions: Sequence[Decision], *, space: str) -> Genotype:
    """The genotype of an architecture given as decision name to option name.

    Raises:
        SpaceError: when a decision or an option is unknown, or a decision is not chosen.
    """
    names = {d.name for d in decisions}
    for name in choices:
        if name not in names:
            raise SpaceError(f"space {space!r}: {unknown('decision', str(name), names)}")
    for d in decisions:
        if d.name not in choices:
            raise SpaceError(f"space {space!r}: decision {d.name!r} is not chosen; wanted one of {d.options}")
        if choices[d.name] not in d.options:
            raise SpaceError(f"decision {d.name!r}: {unknown('option', str(choices[d.name]), d.options)}")
    return tuple(d.options.index(choices[d.name]) for d in decisions)


DRAWS = 400
"""For each decision of an estimate."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many different architectures a space holds.

    exact: whether `count` was counted or else estimated by sampling.
    """

    count: int
    exact: bool

    def __str__(self) -> str:
        large = Decimal(self.count)  # which no float may hold: 2,000 decisions between two are 1e602
        if not self.exact:
            if self.count < 10**6:
                return f"about {round(self.count, 2 - len(str(self.count))):,} (estimated)"
            return f"about {large:.1e} (estimated)"
        return f"{self.count:,}" if self.count < 10**9 else f"{large.normalize():.3g}"


def estimate(
    decisions: Sequence[Decision],
    draw: Callable[[Sequence[int]], Genotype],
    *,
    free: bool,
    aliases: Callable[[Genotype], int] | None,
) -> int:
    """One over the chance of drawing one architecture, decision by decision (Jerrum et al. 1986, §3).

    Takes what is drawn to be uniform over the valid genotypes. A genotype with unasked decisions counts as
    its share of all those that mean the same.

    draw: a random genotype that begins with given options. free: whether every genotype is valid.
    aliases: how many genotypes mean the same as one; None where every one means itself.
    """
    prefix: list[int] = []
    total = Fraction(1)
    for depth, decision in enumerate(decisions):
        if free:
            total *= len(decision.options)
            continue
        seen = [draw(prefix)[depth] for _ in range(2 * DRAWS)]
        # Choosing and counting on the same draws would favour options that were drawn too often.
        option = Counter(seen[:DRAWS]).most_common(1)[0][0]
        total *= Fraction(DRAWS, max(1, seen[DRAWS:].count(option)))
        prefix.append(option)
    if aliases is not None:
        total *= Fraction(float(np.mean([1 / aliases(draw([])) for _ in range(DRAWS)])))
    return round(total)
