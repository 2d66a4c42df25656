"""How many architectures a space holds, counted or estimated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np

from nas.types import Decision, Genotype

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
