"""Whether this process is one of several that a launcher such as torchrun started; needs no torch."""

from __future__ import annotations

import os

from nas.errors import ConfigError, DismissedError

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int] | None:
    """This process's rank and how many there are, where there are several."""
    if not all(name in os.environ for name in _NAMES):
        return None
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError as error:
        raise ConfigError(
            f"RANK is {os.environ['RANK']!r} and WORLD_SIZE {os.environ['WORLD_SIZE']!r}, but both must be "
            "whole numbers; start the ranks with torchrun, or unset them"
        ) from error
    return (rank, size) if size > 1 else None


def follows() -> bool:
    """Whether this is one of several processes and not the first, so that it has nothing to say."""
    try:
        found = launched()
    except ConfigError:  # which will be said by what needs to know
        return False
    return found is not None and found[0] > 0


def refuse(what: str) -> None:
    """Raises an error where there are several processes: `what` runs in one."""
    message = f"{what} runs in one process; start it without torchrun"
    if follows():
        raise DismissedError(message, ConfigError.exit_code)
    if launched() is not None:
        raise ConfigError(message)
