"""Guards against the collapse of a differentiable search: when to go back, how many identities to allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas.errors import ConfigError


@dataclass(frozen=True)
class Guards:
    """What is watched and what is done.

    warmup: the alphas rest for at least this share of the epochs (PC-DARTS: 15 of 50).
    ratio: when the mean of the last eigenvalues of the alphas' Hessian exceeds the mean some epochs earlier
      by this factor, the search goes back to that epoch (Zela et al., ICLR 2020, RobustDARTS, §4.3: 1.3).
    window, delay: how many eigenvalues are averaged and how many epochs lie between the two means; start: how
      many must have been measured since the alphas began to move or the search went back. As shares of the
      epochs, at least three (RobustDARTS: 5, 4 and 10 of 50).
    decay_factor, decay_max: having gone back, the search goes on with so much more weight decay, up to a
      largest one, after which the stage ends where it went back to (RobustDARTS' adaptive variant: 3,
      2.43e-2; here 8.1e-3, beyond which its published searches got worse).
    skip_cap: at most so many identities in a cell of the final architecture (P-DARTS: 2, in normal cells).
      The place of another is taken by the operation whose removal raises the validation loss most (DARTS-PT,
      Wang et al., ICLR 2021), where one runs at a time by that with the lowest loss. No connection is left
      out, as the strength of `none` says nothing.

    Deviations from RobustDARTS' code, which lose fewer epochs and serve short searches: a mean counts as that
    of the last epoch of its window, there as that of the middle one, so that an alarm goes back by half a
    window less; the code looks for one only where it can go back to epoch 10 or later.
    """

    warmup: float = 0.3
    ratio: float = 1.3
    window: float = 0.1
    delay: float = 0.08
    start: float = 0.2
    decay_factor: float = 3.0
    decay_max: float = 8.1e-3
    skip_cap: int = 2

    def __post_init__(self) -> None:
        rules: dict[str, tuple[tuple[str, ...], Callable[[float], bool]]] = {
            "a share in [0, 1)": (("warmup", "window", "delay", "start"), lambda value: 0 <= value < 1),
            "above 1": (("ratio", "decay_factor"), lambda value: value > 1),
            "finite and at least 0": (("decay_max", "skip_cap"), lambda value: 0 <= value < math.inf),
        }
        for wanted, (names, holds) in rules.items():
            for name in names:
                if not holds(value := getattr(self, name)):
                    raise ConfigError(f"guards: {name} is {value}, but must be {wanted}")

    def growth(self, eigenvalues: Sequence[float], epochs: int) -> Growth:
        """How the curvature has grown, given one eigenvalue for each epoch that is looked at.

        epochs: of the whole search, of those that are looked at; the shares refer to them.
        """
        window, delay, start = (_epochs(s, epochs) for s in (self.window, self.delay, self.start))
        now = len(eigenvalues)
        mean = float(np.mean(eigenvalues[-window:])) if now else math.nan
        if now < max(start, delay + 1):
            return Growth(mean)
        early = float(np.mean(eigenvalues[max(0, now - delay - window) : now - delay]))
        return Growth(mean, self.ratio * early if early > 0 else math.nan)

    def reach(self, epochs: int) -> int:
        """By how many epochs an alarm goes back."""
        return _epochs(self.delay, epochs)

    def stronger(self, weight_decay: float) -> float | None:
        """The next weight decay; None when it is as strong as it may get."""
        after = max(weight_decay, 1e-4) * self.decay_factor
        return after if after <= self.decay_max * (1 + 1e-9) else None


def _epochs(share: float, epochs: int) -> int:
    return max(3, round(share * epochs))


@dataclass(frozen=True, slots=True)
class Growth:
    """mean: of the last eigenvalues; level: above which they have grown too much. NaN after too few."""

    mean: float = math.nan
    level: float = math.nan

    @property
    def alarming(self) -> bool:
        """Whether to go back."""
        return self.mean > self.level
