"""The `nas` command, all its subcommands together; launchers such as torchrun start it as `-m nas`."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Sequence

# Each adds its commands, which help lists in this order.
from nas.cli import search, model, results, checks, benchmark  # noqa: F401 # isort: skip
from nas.cli.app import app, spelt_out, warned
from nas.errors import guard_terminal
from nas.training.launch import follows

__all__ = ["app", "main"]

GRACE_S = 0.5
"""For which threads that are left at the end are waited for."""


def main() -> None:
    """The console script: every foreseen error becomes one clear message and an exit code.

    0 done, 1 a fault of ours, 2 usage or settings, 3 data or space, 4 no valid model, 5 the disk or another
    rank, 6 the GPU failed, 130 and 143 signals.
    """
    guard_terminal()
    warnings.showwarning = warned  # type: ignore[assignment]  # Python gives all by position
    logging.basicConfig(format="%(message)s", level=logging.ERROR if follows() else logging.WARNING)
    before = threading.enumerate()
    try:
        app(spelt_out(sys.argv[1:]))
    except SystemExit as end:
        leave(before, end.code)
        raise


def leave(before: Sequence[threading.Thread], code: object) -> None:
    """Ends the process where threads that a user's code began, and left behind, would keep it."""
    begun = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in begun:
        thread.join(GRACE_S / len(begun))
    if any(thread.is_alive() for thread in begun):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else bool(code))


if __name__ == "__main__":
    main()
