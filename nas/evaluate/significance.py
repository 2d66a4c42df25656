"""Is one architecture better than another, or only luckier? Paired comparisons on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from nas.data.task import Split
from nas.errors import ConfigError, counted

LEVEL = 0.05
FLIPS = 10_000
DETECTED = 2.8
"""Standard errors of a difference that is found significant four times in five."""


@dataclass(frozen=True, slots=True)
class Paired:
    """How much more often one network is right than another, over images that both saw.

    delta: difference of the mean accuracies, in [-1, 1]. low, high: its 95 % interval over images and, where
      their noise is known, training seeds.
    p: chance of so large a difference, either way, if both were equally good.
    images, seeds: what the means are over.
    seed_sd: the noise of training that was reckoned with; 0 where it is not known.
    error: the standard error of the difference.
    """

    delta: float
    low: float
    high: float
    p: float
    images: int
    seeds: int
    seed_sd: float = 0.0
    error: float = 0.0

    def statement(self, own: str, other: str) -> str:
        """The comparison in one sentence."""
        over = f"paired over {counted(self.images, 'image')}, {counted(self.seeds, 'seed')} each"
        if not self.seed_sd:
            over += ", the luck of training not counted"
        interval = f"95 % interval {100 * self.low:+.2f} to {100 * self.high:+.2f}"
        numbers = f"{100 * self.delta:+.2f} points ({interval}"
        if self.p >= LEVEL:
            told = f"less than {100 * DETECTED * self.error:.1f} points could not be told"
            return (
                f"{own} and {other} do not differ significantly: {numbers}, p = {self.p:.2g}; {over}; {told})"
            )
        verb = "is better than" if self.delta > 0 else "is worse than"
        return f"{own} {verb} {other}: {numbers}, p = {self.p:.2g}; {over})"


def paired(
    own: NDArray[np.bool_],
    other: NDArray[np.bool_],
    *,
    seed_sd: float = 0.0,
    seed_degrees: float = math.inf,
) -> Paired:
    """Compares two networks by which images `[S, N]` they got right under each of S training seeds.

    Images are the units: what both get right or wrong cancels, which makes small differences visible.

    seed_sd: deviation of an accuracy from training to training, on the same images. It widens the interval
      and raises p: the larger of a sign-flip test over images and a t-test with both noises.
    seed_degrees: degrees of freedom that it was estimated with. A few trainings tell little of their own
      noise, so the interval is Student's, with the degrees of Welch (1947) and Satterthwaite (1946).
    """
    if own.shape != other.shape or own.ndim != 2 or own.shape[1] < 2:
        raise ConfigError(f"paired: got {own.shape} and {other.shape}, wanted two equal shapes [S, N]")
    difference = own.mean(0) - other.mean(0)
    count = len(difference)
    delta = float(difference.mean())
    of_images, of_seeds = float(difference.var(ddof=1)) / count, 2 * seed_sd**2 / len(own)
    error = math.sqrt(of_images + of_seeds)
    degrees = seed_degrees * (error**2 / of_seeds) ** 2 if of_seeds else math.inf
    half = float(stdtrit(degrees, 0.975)) * error
    tail = 2 * float(stdtr(degrees, -abs(delta) / error)) if of_seeds else 0.0
    p = max(tail, _sign_flips(own.sum(0, dtype=np.int64) - other.sum(0, dtype=np.int64)))
    return Paired(delta, max(-1.0, delta - half), min(1.0, delta + half), p, count, len(own), seed_sd, error)


def _sign_flips(difference: NDArray[np.int64]) -> float:
    """The share of random sign patterns whose sum is at least as far from 0 (Fisher 1935, §21).

    Images of equal difference are drawn together, as a binomial number of plus signs, so that the memory
    taken does not grow with the images.
    """
    sizes, counts = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    pluses = np.random.default_rng(0).binomial(counts, 0.5, size=(FLIPS, len(counts)))
    reached = np.abs((2 * pluses - counts) @ sizes) >= abs(difference.sum())
    return float((1 + reached.sum()) / (1 + FLIPS))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share in [0, 1] seen on `count` images (Wilson 1927)."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def chance(split: Split) -> float:
    """The accuracy that guessing the commonest class may reach: the end of its 95 % interval."""
    return wilson(float(split.y.bincount().max()) / len(split), len(split))[1]


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics with as many digits as mean something."""
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}
