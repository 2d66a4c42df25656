"""How long a step takes, where steps may be handed to a device that does them later."""

from __future__ import annotations

import time
from collections.abc import Callable

FAR, PATIENCE = 8.0, 3
"""Steps are far slower than they were when so many in a row take so many times as long."""


class Watch:
    """Asked before every step whether steps are far slower than the `step_s` that they took; 0 if unknown."""

    def __init__(self, step_s: float) -> None:
        self._limit_s, self._slow, self._before = FAR * step_s, 0, time.perf_counter()

    def is_slow(self) -> bool:
        """Takes in the step that has just ended."""
        now = time.perf_counter()
        self._slow = self._slow + 1 if now - self._before > self._limit_s > 0 else 0
        self._before = now
        return self._slow >= PATIENCE


class Pace:
    """Times steps.

    step_s: what a step took of late, in seconds; 0 while that is not known.
    now: the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.step_s = 0.0
        self._now = now
        self._since: tuple[float, int] | None = None

    def forget(self) -> None:
        """Something else came between two steps."""
        self._since = None

    def took(self, seconds: float) -> None:
        """Takes in a step that was waited for."""
        self.step_s, self._since = seconds, None

    def handed_over(self, step: int, *, waited: bool) -> None:
        """Takes in that a device was handed step `step`.

        waited: whether all steps so far have been waited for since.
        """
        if self._since is None:
            self._since = self._now(), step
        elif waited and step > self._since[1]:
            at, earlier = self._since
            self._since = self._now(), step
            self.step_s = (self._since[0] - at) / (step - earlier)
