"""The `nas` command. Heavy libraries are imported inside the commands, so that help comes at once."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from nas.cli import jobs, look, measure, mend, workers
from nas.cli.app import app

__all__ = ["app", "jobs", "look", "main", "measure", "mend", "workers"]


def main() -> None:
    """The console script: every foreseen error becomes one clear message and an exit code.

    0 done, 1 a fault of ours, 2 usage or settings, 3 data or space, 4 no valid model, 6 the GPU failed,
    130 and 143 signals.
    """
    # So that `module:function` finds a user's module here, behind everything that is installed.
    sys.path.append(str(Path.cwd()))
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    app()
