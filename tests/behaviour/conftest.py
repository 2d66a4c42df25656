"""Finished runs that many tests look at: each is made once for all processes of a session, and read only.

The tests in this folder know the engine as its users do: `nas.*` and `spaces.*` in Python, the command `nas`,
and the files of a run's folder.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

import nas

SMALL = {
    "epochs": 2,
    "top_k": 2,
    "repeats": 2,
    "top_k_epochs": 2,
    "search_images": 200,
    "retrain": {"epochs": 3},
    "export": False,
    "pictures": False,
}
"""Settings of a search of a few seconds on scikit-learn's digits."""
CELLS = {"space_settings": {"width": 4, "cells": 1}}
"""Those of a small supernet of NAS-Bench-201."""

RECIPES = {
    "evolution": ("toy", "evolution", {"trials": 5, "export": True, "pictures": True}),
    "darts": ("nasbench201", "darts", {**CELLS, "pictures": True}),
    "spos": ("nasbench201", "spos", {**CELLS, "trials": 20}),
    "pareto": (
        "toy",
        "nsga2",
        {"trials": 6, "objective": ["val_acc", "-macs"], "constraint": ["params<=5e4"], "pictures": True},
    ),
}
"""By name: space, method and settings of the shared runs."""


@pytest.fixture(scope="session")
def runs(tmp_path_factory, worker_id):
    """Gives the folder of a shared run by its name, making it where no process has; nobody may change it."""
    base = tmp_path_factory.getbasetemp()
    place = (base if worker_id == "master" else base.parent) / "shared-runs"
    place.mkdir(exist_ok=True)

    def folder(name):
        space, method, settings = RECIPES[name]
        with filelock.FileLock(place / f"{name}.lock"):
            if not (place / name / "manifest.json").exists():
                nas.search(space, "digits", method, out=place / name, settings=SMALL | settings)
        return place / name

    return folder


@pytest.fixture
def copied(runs, tmp_path):
    """Gives a copy of a shared run, for tests that change it."""

    def copy(name):
        return Path(shutil.copytree(runs(name), tmp_path / name))

    return copy


@pytest.fixture
def command(tmp_path):
    """Runs `nas ARGUMENTS` in a process of its own, as a user would; gives what it said and its exit code."""

    def run(*arguments, timeout=120, code=None, **options):
        done = subprocess.run(
            [sys.executable, "-m", "nas", *map(str, arguments)],
            capture_output=True,
            check=False,
            text=True,
            timeout=timeout,
            cwd=options.pop("cwd", tmp_path),
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(nas.__file__).parent.parent)},
            **options,
        )
        if code is not None:
            assert done.returncode == code, done.stderr[-3000:]
        return done

    return run
