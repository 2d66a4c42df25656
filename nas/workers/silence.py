"""How long each running trial has shown no sign of life, by nobody's clock but the observer's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from optuna.trial import FrozenTrial

OWNER, BEAT = "owner", "beat"
"""Attributes of a trial: who has it, and a counter that grows while it is worked on."""


class Silence:
    """Looks at running trials again and again, and counts for how long nothing of one has changed.

    No clock but the observer's own monotonic one counts, so that clocks that differ or jump change nothing.
    An observer that was frozen itself has seen nothing meanwhile: between two looks no more than `longest_s`
    counts.
    """

    def __init__(self, longest_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_s, self._clock = longest_s, clock
        self._looked = clock()
        self._seen: dict[int, tuple[Any, float]] = {}

    def look(self, trials: Iterable[FrozenTrial]) -> None:
        """Takes note of all trials that run now; those that do not are forgotten."""
        now = self._clock()
        passed, self._looked = min(self._longest_s, now - self._looked), now
        self._seen = {t._trial_id: self._heard(t, passed) for t in trials}

    def seconds(self, trial: FrozenTrial) -> float:
        """For how long a trial has been the same; 0 for one that was not looked at before."""
        return self._seen.get(trial._trial_id, (None, 0.0))[1]

    def _heard(self, trial: FrozenTrial, passed: float) -> tuple[Any, float]:
        now = (trial.user_attrs.get(OWNER), trial.user_attrs.get(BEAT))
        before, silent_s = self._seen.get(trial._trial_id, (None, 0.0))
        return now, silent_s + passed if now == before else 0.0
