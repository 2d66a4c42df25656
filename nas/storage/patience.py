"""Waiting out faults that pass: a database that restarts, a disk that is full for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_log = logging.getLogger("nas")


def _go_on() -> None:
    """What happens before a pause unless the caller says otherwise: nothing."""


@dataclass(frozen=True)
class Patience:
    """How long a fault that may pass is waited out.

    seconds: in all, before it counts as one that stays; with 0 there is one attempt.
    pause_s: before the second attempt; it doubles from attempt to attempt, up to `longest_s`.
    on_wait: called before each pause; what it raises ends the waiting.
    """

    seconds: float = 600.0
    pause_s: float = 0.05
    longest_s: float = 5.0
    on_wait: Callable[[], None] = _go_on

    def outlast(
        self,
        work: Callable[[], T],
        errors: tuple[type[Exception], ...],
        passing: Callable[[Exception], str],
        *,
        what: str,
    ) -> T:
        """The outcome of `work`, which is tried again while it fails in a way that may pass.

        errors: the exceptions that `passing` is asked about; it says why in words, or nothing where waiting
          is no use. Such an error is raised, as is the last one when the time is over.
        what: is at fault; named when the waiting begins and when it is over.
        """
        begun, pause_s = time.monotonic(), 0.0
        while True:
            try:
                outcome = work()
            except errors as error:
                reason = passing(error)
                if not reason or time.monotonic() - begun >= self.seconds:
                    raise
                if not pause_s:
                    _log.warning("%s: %s; trying again for up to %g s", what, reason, self.seconds)
            else:
                if pause_s:
                    _log.warning("%s works again after %.1f s", what, time.monotonic() - begun)
                return outcome
            self.on_wait()
            pause_s = min(2 * pause_s or self.pause_s, self.longest_s)
            time.sleep(pause_s)


PATIENT = Patience()
