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

__version__ = "0.5.0"

_HOME = {
    "Audit": "nas.audit",
    "Calibration": "nas.evaluate.calibration",
    "Candidate": "nas.space.ops",
    "Cell": "nas.space.cell",
    "Chooser": "nas.space.choosers",
    "Config": "nas.run.config",
    "ConfigError": "nas.errors",
    "Constraint": "nas.types",
    "Costs": "nas.evaluate.cost_metrics",
    "DataError": "nas.errors",
    "Decision": "nas.types",
    "Fidelity": "nas.searchers.fidelity",
    "Fixed": "nas.searchers.scheduler",
    "Genotype": "nas.types",
    "Goals": "nas.searchers.goals",
    "Guided": "nas.searchers.predictor_guided",
    "Hyperband": "nas.searchers.scheduler",
    "ImageClassifier": "nas.classifier",
    "Inherited": "nas.evaluate.inherited",
    "Ladder": "nas.searchers.fidelity",
    "Laddered": "nas.evaluate.multi_fidelity",
    "LatencyTable": "nas.space.latency",
    "LocalSearch": "nas.searchers.searcher",
    "Measure": "nas.study.workers",
    "Method": "nas.oneshot.methods",
    "NasError": "nas.errors",
    "NoModelError": "nas.errors",
    "Notation": "nas.space.space",
    "Nsga2": "nas.searchers.evolution",
    "Objective": "nas.types",
    "OptunaSearch": "nas.searchers.optuna_search",
    "Progress": "nas.show.progress",
    "RandomSearch": "nas.searchers.searcher",
    "Recipe": "nas.training.recipe",
    "RegularizedEvolution": "nas.searchers.evolution",
    "Result": "nas.results.result",
    "Space": "nas.space.space",
    "SpaceError": "nas.errors",
    "Stopped": "nas.errors",
    "Study": "nas.study.study",
    "SuccessiveHalving": "nas.searchers.scheduler",
    "Supernet": "nas.oneshot.supernet",
    "Tabular": "nas.evaluate.benchmarks",
    "Task": "nas.data.task",
    "Tracker": "nas.show.tracking.tracker",
    "Trained": "nas.evaluate.trained",
    "Trial": "nas.types",
    "TrialError": "nas.errors",
    "VertexCell": "nas.space.cell",
    "audit_task": "nas.audit",
    "calibrate": "nas.run.calibrate",
    "candidates": "nas.space.ops",
    "check_searcher": "nas.testing",
    "check_space": "nas.testing",
    "load": "nas.space.loading",
    "load_benchmark": "nas.evaluate.benchmarks",
    "load_result": "nas.results.result",
    "load_task": "nas.data.loading",
    "make_config": "nas.run.config",
    "make_searcher": "nas.searchers.factory",
    "parse_goals": "nas.searchers.goals",
    "retrain": "nas.run.pipeline",
    "run_job": "nas.run.pipeline",
    "search": "nas.run.pipeline",
    "task_from_arrays": "nas.data.loading",
    "task_from_datasets": "nas.data.loading",
    "without": "nas.data.exclusions",
}
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
