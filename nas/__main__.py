"""The `nas` command, all its subcommands together; launchers such as torchrun start it as `-m nas`."""

from __future__ import annotations

import logging
import sys
import warnings

# Each adds its commands, which help lists in this order.
from nas.cli import search, model, results, checks, benchmark  # noqa: F401 # isort: skip
from nas.cli.app import Printable, app, spelt_out, warned
from nas.training.launch import follows

__all__ = ["app", "main"]


def main() -> None:
    """The console script: every foreseen error becomes one clear message and an exit code.

    0 done, 1 a fault of ours, 2 usage or settings, 3 data or space, 4 no valid model, 5 the disk or another
    rank, 6 the GPU failed, 130 and 143 signals.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(Printable("%(message)s"))
    warnings.showwarning = warned  # type: ignore[assignment]  # Python gives all by position
    logging.basicConfig(handlers=[handler], level=logging.ERROR if follows() else logging.WARNING)
    app(spelt_out(sys.argv[1:]))


if __name__ == "__main__":
    main()
