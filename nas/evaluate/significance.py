"""Is one architecture better than another, or only luckier? Paired comparisons on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from nas.data.task import Split, Task
from nas.errors import ConfigError, counted

Scores: TypeAlias = NDArray[Any]
"""Of images: truths, whether each was got right, or numbers of which more is better."""
LEVEL = 0.05
FLIPS, PART = 10_000, 100
"""Sign patterns that a p-value is made of, and how many of them are drawn at a time."""
DETECTED = 2.8
"""Standard errors of a difference that is found significant four times in five."""


@dataclass(frozen=True, slots=True)
class Paired:
    """How much higher one network scores than another, over images that both saw.

    delta: difference of the mean scores, such as accuracies in [0, 1], positive where the first is better.
      low, high: its 95 % interval over images and, where their noise is known, training seeds.
    p: chance of so large a difference, either way, if both were equally good.
    images, seeds: what the means are over.
    seed_sd: the noise of training that was reckoned with; 0 where it is not known.
    error: the standard error of the difference.
    is_share: whether scores are shares in [0, 1], whose differences are told in points of a hundred.
    """

    delta: float
    low: float
    high: float
    p: float
    images: int
    seeds: int
    seed_sd: float = 0.0
    error: float = 0.0
    is_share: bool = True

    def points(self, value: float, sign: str = "+") -> str:
        """A difference as a number for people."""
        return format(100 * value, f"{sign}.2f") if self.is_share else format(value, f"{sign}.3g")

    def __str__(self) -> str:
        unit = " points" if self.is_share else ""
        return f"{self.points(self.delta)}{unit}, error {self.points(self.error, '')}, p = {self.p:.2g}"

    def statement(self, own: str, other: str) -> str:
        """The comparison in one sentence."""
        over = f"paired over {counted(self.images, 'image')}, {counted(self.seeds, 'seed')} each"
        if not self.seed_sd:
            over += ", the luck of training not counted"
        interval = f"95 % interval {self.points(self.low)} to {self.points(self.high)}"
        unit = " points" if self.is_share else ""
        numbers = f"{self.points(self.delta)}{unit} ({interval}"
        if self.p >= LEVEL:
            told = f"less than {self.points(DETECTED * self.error, '')}{unit} could not be told"
            return (
                f"{own} and {other} do not differ significantly: {numbers}, p = {self.p:.2g}; {over}; {told})"
            )
        verb = "is better than" if self.delta > 0 else "is worse than"
        return f"{own} {verb} {other}: {numbers}, p = {self.p:.2g}; {over})"


def paired(
    own: Scores,
    other: Scores,
    *,
    seed_sd: float = 0.0,
    seed_degrees: float = math.inf,
) -> Paired:
    """Compares two networks by their scores `[S, N]` on images under each of S training seeds.

    Scores are truths, whether an image was got right, or numbers of which more is better. Images are the
    units: what both get right or wrong cancels, which makes small differences visible.

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
    is_share = own.dtype == np.bool_
    kind = np.int64 if is_share else np.float64
    p = max(tail, _sign_flips(own.sum(0, dtype=kind) - other.sum(0, dtype=kind)))
    most = 1.0 if is_share else math.inf
    low, high = max(-most, delta - half), min(most, delta + half)
    return Paired(delta, low, high, p, count, len(own), seed_sd, error, is_share)


def _sign_flips(difference: NDArray[Any]) -> float:
    """The share of random sign patterns whose sum is at least as far from 0 (Fisher 1935, §21).

    Images of equal difference are drawn together, as a binomial number of plus signs.
    """
    sizes, counts = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    draw, reached, sum_ = np.random.default_rng(0), 0, abs(difference.sum())
    for _ in range(FLIPS // PART):
        pluses = draw.binomial(counts, 0.5, size=(PART, len(counts)))
        reached += int((np.abs((2 * pluses - counts) @ sizes) >= sum_ * (1 - 1e-12)).sum())
    return (1 + reached) / (1 + FLIPS)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share in [0, 1] seen on `count` images (Wilson 1927)."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval(scores: Scores) -> tuple[float, float]:
    """The 95 % interval of a mean of scores `[N]`; of truths that of a share."""
    mean = float(scores.mean())
    if scores.dtype == np.bool_:
        return wilson(mean, len(scores))
    half = 1.959964 * float(scores.std(ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else math.inf
    return mean - half, mean + half


def chance(task: Task, split: Split) -> float:
    """What guessing may reach of the task's metric: the better end of its 95 % interval."""
    return max(interval(task.problem.guess(split.y).cpu().numpy()), key=task.problem.better)


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics with as many digits as mean something."""
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}
