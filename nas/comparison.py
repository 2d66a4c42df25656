"""Is one architecture better than another, or only luckier? Paired comparisons on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError

LEVEL = 0.05
FLIPS = 10_000


@dataclass(frozen=True, slots=True)
class Paired:
    """How much more often one network is right than another, over images that both saw.

    delta: difference of the mean accuracies, in [-1, 1]. low, high: its 95 % interval over images.
    p: chance of so large a difference, either way, if both were equally good (sign-flip test).
    images, seeds: what the means are over.
    """

    delta: float
    low: float
    high: float
    p: float
    images: int
    seeds: int

    def statement(self, own: str, other: str) -> str:
        """The comparison in one sentence."""
        over = f"paired over {self.images:,} images, {self.seeds} seed{'s' if self.seeds > 1 else ''} each"
        interval = f"95 % interval {100 * self.low:+.2f} to {100 * self.high:+.2f}"
        numbers = f"{100 * self.delta:+.2f} points ({interval}"
        if self.p >= LEVEL:
            return f"{own} and {other} do not differ significantly: {numbers}, p = {self.p:.2g}; {over})"
        verb = "is better than" if self.delta > 0 else "is worse than"
        return f"{own} {verb} {other}: {numbers}, p = {self.p:.2g}; {over})"


def paired(own: NDArray[np.bool_], other: NDArray[np.bool_]) -> Paired:
    """Compares two networks by which images `[S, N]` they got right under each of S training seeds.

    Images are the units: what both get right or wrong cancels, which makes small differences visible. The
    interval is the normal one for a mean of paired differences; it covers the choice of images, while seeds
    enter through the means over them.
    """
    if own.shape != other.shape or own.ndim != 2 or own.shape[1] < 2:
        raise ConfigError(f"paired: got {own.shape} and {other.shape}, wanted two equal shapes [S, N]")
    difference = own.mean(0) - other.mean(0)
    count = len(difference)
    delta = float(difference.mean())
    half = 1.959964 * float(difference.std(ddof=1)) / math.sqrt(count)
    low, high = max(-1.0, delta - half), min(1.0, delta + half)
    return Paired(delta, low, high, _sign_flips(difference), count, own.shape[0])


def _sign_flips(difference: NDArray[np.float64]) -> float:
    """The share of random sign patterns whose mean is at least as far from 0 (Fisher 1935, §21)."""
    unequal = difference[difference != 0]
    if not len(unequal):
        return 1.0
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(FLIPS, len(unequal)))
    reached = np.abs(signs @ unequal) >= abs(unequal.sum()) - 1e-9
    return float((1 + reached.sum()) / (1 + FLIPS))
