"""Neural architecture search: one space definition for evolutionary and differentiable strategies.

`nas.search(space="darts", task="digits", method="darts")` does the whole job. Names are imported when they
are first used, so that `import nas` and `nas --help` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.audit import Audit, audit_task
    from nas.benchmarks import Tabular, load_benchmark
    from nas.calibrate_run import calibrate
    from nas.calibration import Calibration
    from nas.cell import Cell, VertexCell
    from nas.choosers import Chooser
    from nas.classifier import ImageClassifier
    from nas.config import Config, make_config
    from nas.errors import ConfigError, DataError, NasError, NoModelError, SpaceError, TrialError
    from nas.evaluate import Inherited, Trained
    from nas.fidelity import Fidelity, Ladder
    from nas.goals import Goals, parse_goals
    from nas.halving import Hyperband, SuccessiveHalving
    from nas.laddered import Laddered
    from nas.latency import LatencyTable
    from nas.measured import Measured
    from nas.oneshot.method import Method
    from nas.oneshot.supernet import Supernet
    from nas.ops import Candidate, candidates
    from nas.progress import Progress
    from nas.recipe import Recipe
    from nas.registry import load
    from nas.result import Result, load_result
    from nas.resumable import Stopped
    from nas.retrain_run import retrain
    from nas.schedule import Fixed
    from nas.search_run import run, search
    from nas.searchers import Guided, LocalSearch, Nsga2, RandomSearch, RegularizedEvolution
    from nas.searchers.named import make_searcher
    from nas.searchers.optuna_search import OptunaSearch
    from nas.space import Notation, Space
    from nas.study import Study
    from nas.suspects import without
    from nas.task import Task, load_task, task_from_arrays, task_from_datasets
    from nas.testing import check_searcher, check_space
    from nas.tracking.tracker import Tracker
    from nas.types import Constraint, Decision, Genotype, Objective, Trial

__version__ = "0.5.0"

_HOME = {
    "Audit": "nas.audit",
    "Calibration": "nas.calibration",
    "Candidate": "nas.ops",
    "Cell": "nas.cell",
    "Chooser": "nas.choosers",
    "Config": "nas.config",
    "ConfigError": "nas.errors",
    "Constraint": "nas.types",
    "DataError": "nas.errors",
    "Decision": "nas.types",
    "Fidelity": "nas.fidelity",
    "Fixed": "nas.schedule",
    "Genotype": "nas.types",
    "Goals": "nas.goals",
    "Guided": "nas.searchers",
    "Hyperband": "nas.halving",
    "ImageClassifier": "nas.classifier",
    "Inherited": "nas.evaluate",
    "Ladder": "nas.fidelity",
    "Laddered": "nas.laddered",
    "LatencyTable": "nas.latency",
    "LocalSearch": "nas.searchers",
    "Measured": "nas.measured",
    "Method": "nas.oneshot.method",
    "NasError": "nas.errors",
    "NoModelError": "nas.errors",
    "Notation": "nas.space",
    "Nsga2": "nas.searchers",
    "Objective": "nas.types",
    "OptunaSearch": "nas.searchers.optuna_search",
    "Progress": "nas.progress",
    "RandomSearch": "nas.searchers",
    "Recipe": "nas.recipe",
    "RegularizedEvolution": "nas.searchers",
    "Result": "nas.result",
    "Space": "nas.space",
    "SpaceError": "nas.errors",
    "Stopped": "nas.resumable",
    "Study": "nas.study",
    "SuccessiveHalving": "nas.halving",
    "Supernet": "nas.oneshot.supernet",
    "Tabular": "nas.benchmarks",
    "Task": "nas.task",
    "Tracker": "nas.tracking.tracker",
    "Trained": "nas.evaluate",
    "Trial": "nas.types",
    "TrialError": "nas.errors",
    "VertexCell": "nas.cell",
    "audit_task": "nas.audit",
    "calibrate": "nas.calibrate_run",
    "candidates": "nas.ops",
    "check_searcher": "nas.testing",
    "check_space": "nas.testing",
    "load": "nas.registry",
    "load_benchmark": "nas.benchmarks",
    "load_result": "nas.result",
    "load_task": "nas.task",
    "make_config": "nas.config",
    "make_searcher": "nas.searchers.named",
    "parse_goals": "nas.goals",
    "retrain": "nas.retrain_run",
    "run": "nas.search_run",
    "search": "nas.search_run",
    "task_from_arrays": "nas.task",
    "task_from_datasets": "nas.task",
    "without": "nas.suspects",
}
__all__ = list(_HOME)


_MODULES = ("audit", "benchmarks", "draw", "oneshot", "proxies", "testing")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"nas.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
