"""Guards against the collapse of a differentiable search: when to go back, how many identities to allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from nas.errors import ConfigError
from nas.training.checkpoint import pack, unpack


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
        for name in ("warmup", "window", "delay", "start"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"guards: {name} is {getattr(self, name)}, but must be a share in [0, 1)")
        if not (self.ratio > 1 and self.decay_factor > 1 and 0 <= self.decay_max < math.inf):
            raise ConfigError(
                f"guards: got ratio {self.ratio}, decay_factor {self.decay_factor} and decay_max "
                f"{self.decay_max}; wanted the first two above 1, the last finite and at least 0"
            )
        if self.skip_cap < 0:
            raise ConfigError(f"guards: skip_cap is {self.skip_cap}, but must be at least 0")

    def growth(self, eigenvalues: Sequence[float], epochs: int) -> Growth:
        """How the curvature has grown, given one eigenvalue for each epoch that is looked at.

        epochs: of the whole search; the shares refer to it.
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


Moment = tuple[int, int, Any]
"""Epochs and steps done, and the state then."""


class EigenvalueMonitor:
    """The eigenvalues since the alphas began to move, a stage began or the search went back."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self._eigenvalues: list[float] = []
        self._moments: dict[int, Moment] = {}

    def look(
        self, epoch: int, epochs: int, eigenvalue: float, moment: Callable[[], Moment] | None
    ) -> tuple[Growth, Moment | None]:
        """Takes in one epoch; when it alarms, gives the moment to go back to, all else forgotten.

        epochs: of the search, or of the stage where every one starts anew; the guards' shares refer to it.
        moment: asked for the present one, which is copied to the CPU; None where nobody goes back.
        """
        self._eigenvalues.append(eigenvalue)
        growth = self.guards.growth(self._eigenvalues, epochs)
        if moment is None:
            return growth, None
        self._moments[epoch] = cast(Moment, unpack(*pack(moment())))
        reach = self.guards.reach(epochs)
        if not growth.alarming:
            self._moments = {at: kept for at, kept in self._moments.items() if at > epoch - reach}
            return growth, None
        found = self._moments[epoch - reach]
        self.forget()
        return growth, found

    def forget(self) -> None:
        """Starts anew: what was measured in another form or under less weight decay says nothing now."""
        self._eigenvalues.clear()
        self._moments.clear()

    def state(self) -> dict[str, Any]:
        """What the next look depends on."""
        return {"eigenvalues": list(self._eigenvalues), "moments": dict(self._moments)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to a state."""
        self._eigenvalues = list(state["eigenvalues"])
        self._moments = dict(state["moments"])
