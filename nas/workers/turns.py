"""Taking turns: what holds for every kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

PATIENCE_S = 5.0
"""Seconds to wait for one's turn before doing something else and trying again."""
CUT_OFF_S = 300.0
"""Seconds after which the turn is taken from a process that does nothing with it."""


class NoTurnError(Exception):
    """Others have had the turn all the time, or it was taken away; trying again later is right."""


Turn = Callable[[], AbstractContextManager[Callable[[], None]]]
"""Enters when it is this process's turn; what it gives raises NoTurnError once the turn is lost."""
