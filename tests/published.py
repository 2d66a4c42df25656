"""Published tables, which the project itself does not contain."""

import os
from pathlib import Path

import pytest


def table(name):
    """The file of that name in $NAS_BENCHMARKS, else in benchmarks/; skips the test without one."""
    file = Path(os.environ.get("NAS_BENCHMARKS") or Path(__file__).parents[1] / "benchmarks") / name
    if not file.is_file():
        pytest.skip(f"no {file}; set NAS_BENCHMARKS to the folder of published tables")
    return file
