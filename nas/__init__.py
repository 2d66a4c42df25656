"""Neural architecture search: one space definition for evolutionary and differentiable strategies.

`nas.search(space="darts", task="digits", method="darts")` does the whole job. Names are imported when they
are first used, so that `import nas` and `nas --help` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.audit import Audit, audit_task
    from nas.classifier import ImageClassifier
    from nas.data.exclusions import without
    from nas.data.loading import load_task, task_from_arrays, task_from_datasets
    from nas.data.problem import CLASSIFICATION, Problem
    from nas.data.task import Task
    from nas.errors import ConfigError, DataError, NasError, NoModelError, SpaceError, Stopped, TrialError
    from nas.evaluate.benchmarks import Tabular, load_benchmark
    from nas.evaluate.calibration import Calibration
    from nas.evaluate.cost_metrics import Costs
    from nas.evaluate.inherited import Inherited
    from nas.evaluate.multi_fidelity import Laddered
    from nas.evaluate.trained import Trained
    from nas.oneshot.methods import Method
    from nas.oneshot.supernet import Supernet
    from nas.results.result import Result, load_result
    from nas.run.calibrate import calibrate
    from nas.run.config import Config, make_config
    from nas.run.pipeline import retrain, run_job, search
    from nas.searchers.evolution import Nsga2, RegularizedEvolution
    from nas.searchers.factory import make_searcher
    from nas.searchers.fidelity import Fidelity, Ladder
    from nas.searchers.goals import Goals, parse_goals
    from nas.searchers.optuna_search import OptunaSearch
    from nas.searchers.predictor_guided import Guided
    from nas.searchers.scheduler import Fixed, Hyperband, SuccessiveHalving
    from nas.searchers.searcher import LocalSearch, RandomSearch
    from nas.show.progress import Progress
    from nas.show.tracking.tracker import Tracker
    from nas.space.cell import Cell, VertexCell
    from nas.space.choosers import Candidate, Chooser
    from nas.space.latency import LatencyTable
    from nas.space.loading import load
    from nas.space.ops import candidates
    from nas.space.space import Notation, Space
    from nas.study.study import Study
    from nas.study.workers import Measure
    from nas.testing import check_searcher, check_space
    from nas.training.recipe import Recipe
    from nas.types import Constraint, Decision, Genotype, Objective, Trial

__version__ = "0.6.0"

_NAMES = {
    "audit": "Audit audit_task",
    "classifier": "ImageClassifier",
    "data.exclusions": "without",
    "data.loading": "load_task task_from_arrays task_from_datasets",
    "data.problem": "CLASSIFICATION Problem",
    "data.task": "Task",
    "errors": "ConfigError DataError NasError NoModelError SpaceError Stopped TrialError",
    "evaluate.benchmarks": "Tabular load_benchmark",
    "evaluate.calibration": "Calibration",
    "evaluate.cost_metrics": "Costs",
    "evaluate.inherited": "Inherited",
    "evaluate.multi_fidelity": "Laddered",
    "evaluate.trained": "Trained",
    "oneshot.methods": "Method",
    "oneshot.supernet": "Supernet",
    "results.result": "Result load_result",
    "run.calibrate": "calibrate",
    "run.config": "Config make_config",
    "run.pipeline": "retrain run_job search",
    "searchers.evolution": "Nsga2 RegularizedEvolution",
    "searchers.factory": "make_searcher",
    "searchers.fidelity": "Fidelity Ladder",
    "searchers.goals": "Goals parse_goals",
    "searchers.optuna_search": "OptunaSearch",
    "searchers.predictor_guided": "Guided",
    "searchers.scheduler": "Fixed Hyperband SuccessiveHalving",
    "searchers.searcher": "LocalSearch RandomSearch",
    "show.progress": "Progress",
    "show.tracking.tracker": "Tracker",
    "space.cell": "Cell VertexCell",
    "space.choosers": "Candidate Chooser",
    "space.latency": "LatencyTable",
    "space.loading": "load",
    "space.ops": "candidates",
    "space.space": "Notation Space",
    "study.study": "Study",
    "study.workers": "Measure",
    "testing": "check_searcher check_space",
    "training.recipe": "Recipe",
    "types": "Constraint Decision Genotype Objective Trial",
}
"""The public names of each module."""
_HOME = {name: f"nas.{module}" for module, names in _NAMES.items() for name in names.split()}
__all__ = list(_HOME)


_MODULES = {
    "audit": "nas.audit",
    "benchmarks": "nas.evaluate.benchmarks",
    "draw": "nas.show.draw",
    "oneshot": "nas.oneshot",
    "proxies": "nas.evaluate.proxies",
    "testing": "nas.testing",
}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
