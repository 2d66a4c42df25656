"""Neural architecture search: one space definition for evolutionary and differentiable strategies.

`nas.search(space="darts", task="digits", method="darts")` does the whole job. Names are imported when they
are first used, so that `import nas` and `nas --help` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.cell import Cell
    from nas.choosers import Chooser
    from nas.config import Config, make_config
    from nas.errors import ConfigError, DataError, NasError, NoModelError, SpaceError, TrialError
    from nas.evaluate import Inherited, Trained
    from nas.oneshot.bilevel import Bilevel
    from nas.oneshot.supernet import Supernet
    from nas.ops import candidates
    from nas.progress import Progress
    from nas.recipe import Recipe
    from nas.registry import load
    from nas.result import Result, load_result
    from nas.resumable import Stopped
    from nas.retrain_run import retrain
    from nas.schedule import Fixed
    from nas.search_run import run, search
    from nas.searchers import RandomSearch, RegularizedEvolution
    from nas.space import Notation, Space
    from nas.study import Study
    from nas.task import Task, load_task, task_from_arrays, task_from_datasets
    from nas.testing import check_searcher, check_space
    from nas.types import Decision, Genotype, Objective, Trial

__version__ = "0.1.0"

_HOME = {
    "Bilevel": "nas.oneshot.bilevel",
    "Cell": "nas.cell",
    "Chooser": "nas.choosers",
    "Config": "nas.config",
    "ConfigError": "nas.errors",
    "DataError": "nas.errors",
    "Decision": "nas.types",
    "Fixed": "nas.schedule",
    "Genotype": "nas.types",
    "Inherited": "nas.evaluate",
    "NasError": "nas.errors",
    "NoModelError": "nas.errors",
    "Notation": "nas.space",
    "Objective": "nas.types",
    "Progress": "nas.progress",
    "RandomSearch": "nas.searchers",
    "Recipe": "nas.recipe",
    "RegularizedEvolution": "nas.searchers",
    "Result": "nas.result",
    "Space": "nas.space",
    "SpaceError": "nas.errors",
    "Stopped": "nas.resumable",
    "Study": "nas.study",
    "Supernet": "nas.oneshot.supernet",
    "Task": "nas.task",
    "Trained": "nas.evaluate",
    "Trial": "nas.types",
    "TrialError": "nas.errors",
    "candidates": "nas.ops",
    "check_searcher": "nas.testing",
    "check_space": "nas.testing",
    "load": "nas.registry",
    "load_result": "nas.result",
    "load_task": "nas.task",
    "make_config": "nas.config",
    "retrain": "nas.retrain_run",
    "run": "nas.search_run",
    "search": "nas.search_run",
    "task_from_arrays": "nas.task",
    "task_from_datasets": "nas.task",
}
__all__ = list(_HOME)


_MODULES = ("draw", "testing")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"nas.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
