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
    from nas.cell import Cell, VertexCell
    from nas.choosers import Chooser
    from nas.classifier import ImageClassifier
    from nas.data.suspects import without
    from nas.errors import ConfigError, DataError, NasError, NoModelError, SpaceError, TrialError
    from nas.evaluation.calibration import Calibration
    from nas.evaluation.evaluators import Inherited, Trained
    from nas.evaluation.fidelity import Fidelity, Ladder
    from nas.evaluation.laddered import Laddered
    from nas.evaluation.measured import Costs
    from nas.goals import Goals, parse_goals
    from nas.job.calibrate_run import calibrate
    from nas.job.config import Config, make_config
    from nas.job.retrain_run import retrain
    from nas.job.search_run import run, search
    from nas.latency import LatencyTable
    from nas.oneshot.method import Method
    from nas.oneshot.supernet import Supernet
    from nas.ops import Candidate, candidates
    from nas.progress import Progress
    from nas.registry import load
    from nas.results.result import Result, load_result
    from nas.schedulers.halving import Hyperband, SuccessiveHalving
    from nas.schedulers.scheduler import Fixed
    from nas.searchers import Guided, LocalSearch, Nsga2, RandomSearch, RegularizedEvolution
    from nas.searchers.named import make_searcher
    from nas.searchers.optuna_search import OptunaSearch
    from nas.space import Notation, Space
    from nas.study.measuring import Measure
    from nas.study.study import Study
    from nas.task import Task, load_task, task_from_arrays, task_from_datasets
    from nas.testing import check_searcher, check_space
    from nas.tracking.tracker import Tracker
    from nas.training.recipe import Recipe
    from nas.training.resumable import Stopped
    from nas.types import Constraint, Decision, Genotype, Objective, Trial

__version__ = "0.5.0"

_HOME = {
    "Audit": "nas.audit",
    "Calibration": "nas.evaluation.calibration",
    "Candidate": "nas.ops",
    "Cell": "nas.cell",
    "Chooser": "nas.choosers",
    "Config": "nas.job.config",
    "ConfigError": "nas.errors",
    "Constraint": "nas.types",
    "Costs": "nas.evaluation.measured",
    "DataError": "nas.errors",
    "Decision": "nas.types",
    "Fidelity": "nas.evaluation.fidelity",
    "Fixed": "nas.schedulers.scheduler",
    "Genotype": "nas.types",
    "Goals": "nas.goals",
    "Guided": "nas.searchers",
    "Hyperband": "nas.schedulers.halving",
    "ImageClassifier": "nas.classifier",
    "Inherited": "nas.evaluation.evaluators",
    "Ladder": "nas.evaluation.fidelity",
    "Laddered": "nas.evaluation.laddered",
    "LatencyTable": "nas.latency",
    "LocalSearch": "nas.searchers",
    "Measure": "nas.study.measuring",
    "Method": "nas.oneshot.method",
    "NasError": "nas.errors",
    "NoModelError": "nas.errors",
    "Notation": "nas.space",
    "Nsga2": "nas.searchers",
    "Objective": "nas.types",
    "OptunaSearch": "nas.searchers.optuna_search",
    "Progress": "nas.progress",
    "RandomSearch": "nas.searchers",
    "Recipe": "nas.training.recipe",
    "RegularizedEvolution": "nas.searchers",
    "Result": "nas.results.result",
    "Space": "nas.space",
    "SpaceError": "nas.errors",
    "Stopped": "nas.training.resumable",
    "Study": "nas.study.study",
    "SuccessiveHalving": "nas.schedulers.halving",
    "Supernet": "nas.oneshot.supernet",
    "Tabular": "nas.benchmarks",
    "Task": "nas.task",
    "Tracker": "nas.tracking.tracker",
    "Trained": "nas.evaluation.evaluators",
    "Trial": "nas.types",
    "TrialError": "nas.errors",
    "VertexCell": "nas.cell",
    "audit_task": "nas.audit",
    "calibrate": "nas.job.calibrate_run",
    "candidates": "nas.ops",
    "check_searcher": "nas.testing",
    "check_space": "nas.testing",
    "load": "nas.registry",
    "load_benchmark": "nas.benchmarks",
    "load_result": "nas.results.result",
    "load_task": "nas.task",
    "make_config": "nas.job.config",
    "make_searcher": "nas.searchers.named",
    "parse_goals": "nas.goals",
    "retrain": "nas.job.retrain_run",
    "run": "nas.job.search_run",
    "search": "nas.job.search_run",
    "task_from_arrays": "nas.task",
    "task_from_datasets": "nas.task",
    "without": "nas.data.suspects",
}
__all__ = list(_HOME)


_MODULES = ("audit", "benchmarks", "draw", "oneshot", "proxies", "testing")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"nas.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
