"""All that a run's folder tells, finished or not; nothing in it is executed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.errors import ConfigError, NasError
from nas.files.atomic import read_json
from nas.files.folder import is_file, require_intact
from nas.files.schemas import (
    ComparedRecord,
    EpochRecord,
    HealthRecord,
    RunRecord,
    StudyRecord,
    TrialRecord,
    checked,
)
from nas.results.result import ARCHITECTURE, Alphas, graphs_of, read_architecture, read_metrics
from nas.results.run_record import RANDOM, SEARCH, compared_of, read_run
from nas.searchers.goals import Goals, longest
from nas.searchers.method_names import SHARED, by_gradients
from nas.space.graph import Graph, cell_graphs
from nas.space.loading import is_plugin, load
from nas.space.space import Space
from nas.study.storage import JOURNAL, past_storage, reading, under_way
from nas.types import Decision, Genotype, Trial, of_longest_training

JOB = "the job itself"
"""Who evaluates trials of which nothing else is known."""
_HEALTH, _ALPHAS, _METRICS = "health.json", "alphas.npz", "metrics.json"
_FILES = ("run.json", ARCHITECTURE, _METRICS, "baselines.json", _HEALTH, _ALPHAS, "config.toml")


@dataclass(frozen=True, slots=True)
class Work:
    """Who evaluated a trial, and when.

    worker: a process, or `JOB`.
    begun_s, ended_s: seconds since 1970. A trial that still runs has no end, and begins when it is looked at.
    """

    worker: str
    begun_s: float
    ended_s: float | None


@dataclass(frozen=True, eq=False)
class History:
    """One study: what is decided, what for, its trials by number, and the work on each of them."""

    decisions: Sequence[Decision] = ()
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value
    trials: Sequence[Trial] = ()
    work: Mapping[int, Work] = field(default_factory=dict)

    @cached_property
    def done(self) -> list[Trial]:
        """The finished trials that have all that the goals ask for."""
        wanted = set(self.goals.metrics)
        return [t for t in self.trials if t.state == "done" and wanted <= t.metrics.keys()]

    @cached_property
    def longest(self) -> list[Trial]:
        """The finished trials of the longest training: their values can be compared."""
        return of_longest_training(self.done)

    @cached_property
    def allowed(self) -> list[Trial]:
        """The finished trials that keep all constraints, those of the longest training."""
        return longest(self.done, self.goals)

    @cached_property
    def broken(self) -> set[int]:
        """The numbers of the finished trials that break a constraint."""
        return self.goals.broken_by(self.done)

    def improving(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that were each better than all before, by constraints and then by the first objective."""
        found: list[Trial] = []
        for trial in trials:
            if not found or self.goals.fitness(trial) > self.goals.fitness(found[-1]):
                found.append(trial)
        return found

    def choices(self, genotype: Genotype) -> dict[str, str]:
        """A genotype in words."""
        return {d.name: d.options[o] for d, o in zip(self.decisions, genotype, strict=True)}


@dataclass(frozen=True, eq=False)
class Run:
    """One run, as far as it has come.

    record: run.json; told: what else stands in there. search, random: studies, empty where there are none.
    architecture: the content of architecture.json, None until it is finished. metrics: empty until then.
    space: that of the trials, None where it is code of the user's own that was not named, or cannot be
    loaded any more.
    """

    folder: Path
    record: Mapping[str, Any]
    told: RunRecord
    search: History
    random: History
    architecture: Mapping[str, Any] | None
    metrics: Mapping[str, float]
    compared: ComparedRecord | None
    health: Sequence[EpochRecord]
    alphas: Alphas | None
    space: Space | None

    @property
    def name(self) -> str:
        """That of its folder."""
        return self.folder.name

    @property
    def method(self) -> str:
        """How it searched; empty for a retraining."""
        return "" if self.record["architecture"] is not None else str(self.record["config"].get("method", ""))

    @property
    def is_by_gradients(self) -> bool:
        """Whether its trials are the epochs of a supernet."""
        return by_gradients(self.method)

    @property
    def shares_weights(self) -> bool:
        """Whether its trials are evaluated on the weights of a supernet."""
        evaluator = self.record["config"].get("evaluator")
        return bool(self.method) and (self.method in SHARED or evaluator == "shared")

    def called(self, trial: Trial) -> tuple[str, str]:
        """What a trial of the search is, and its number: epochs are counted from 1, as everywhere."""
        return ("epoch", str(trial.number + 1)) if self.is_by_gradients else ("trial", str(trial.number))

    @cached_property
    def final(self) -> Space | None:
        """The space at the size of the last network, where it is one of the engine's own."""
        found = self.architecture
        return None if found is None else _own_space(found["space"], found["settings"])

    @cached_property
    def graphs(self) -> dict[str, Graph]:
        """The cells that were found, without the space."""
        return {} if self.architecture is None else graphs_of(self.architecture)

    def cells(self, genotype: Genotype) -> dict[str, Graph]:
        """The cells of a trial; none without the space or where it has changed."""
        names = [decision.name for decision in self.search.decisions]
        if self.space is None or [decision.name for decision in self.space.decisions] != names:
            return {}
        try:
            return cell_graphs(self.space, self.space.genotype(self.search.choices(genotype)))
        except NasError:
            return {}


def read(folder: Path, space: Space | None = None) -> Run:
    """What there is of the run in a folder.

    space: that of the trials, where it is code of the user's own, which is never run unasked.

    Raises:
        ConfigError: when there is no run, or what is there is damaged.
    """
    record = read_run(folder)
    told = checked(RunRecord, record, folder / "run.json", "record of a run")
    found = {name for name in _FILES if is_file(folder / name)}
    require_intact(folder, *found)
    studies, architecture, epochs = read_studies(folder), None, []
    if ARCHITECTURE in found:
        architecture = read_architecture(folder)
    if _HEALTH in found:
        file = folder / _HEALTH
        epochs = checked(HealthRecord, read_json(file), file, "record of health").epochs
    return Run(
        folder.resolve(),
        record,
        told,
        studies.get(SEARCH, History()),
        studies.get(RANDOM, History()),
        architecture,
        read_metrics(folder) if _METRICS in found else {},
        compared_of(folder),
        epochs,
        Alphas.read(folder / _ALPHAS) if _ALPHAS in found else None,
        space or _own_space(record["space"].get("origin"), record["space"].get("settings")),
    )


def read_studies(folder: Path) -> dict[str, History]:
    """The studies of a run by name, none where nothing was written yet.

    Raises:
        ConfigError: when one is damaged, or was not written by this engine.
    """
    with reading(folder / JOURNAL):
        found = past_storage(folder)
        if found is None:
            return {}
        storage, prefix = found
        names = [name for name in optuna.get_all_study_names(storage) if name.startswith(prefix)]
        return {
            name.removeprefix(prefix): _history(optuna.load_study(study_name=name, storage=storage))
            for name in names
        }


def _history(study: optuna.Study) -> History:
    source = f"study {study.study_name!r}"
    known = study.user_attrs.get("nas")
    if known is None:  # killed before anything of it was written
        return History()
    record = checked(StudyRecord, known, source, "record of a study")
    decisions = [Decision(name, tuple(options)) for name, options in record.decisions]
    now = time.time()
    found = {trial.number: (trial, Work(JOB, now, None)) for trial in under_way(study)}
    for frozen in study.get_trials(deepcopy=False):
        trial = _ended(frozen, decisions, f"{source}, trial {frozen.number}")
        ended_s = frozen.datetime_complete.timestamp() if frozen.datetime_complete is not None else 0.0
        worker = frozen.user_attrs["nas"].get("worker") or JOB
        found[trial.number] = trial, Work(worker, ended_s - trial.cost_s, ended_s)
    trials = [found[number][0] for number in sorted(found)]
    return History(decisions, Goals.from_dict(known), trials, {n: work for n, (_, work) in found.items()})


def _ended(frozen: FrozenTrial, decisions: Sequence[Decision], source: str) -> Trial:
    """A trial as Optuna keeps it, without its space."""
    record = checked(TrialRecord, frozen.user_attrs.get("nas"), source, "record of a trial")
    try:
        genotype = tuple(d.options.index(frozen.params[d.name]) for d in decisions)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{source} is damaged: it lacks a decision or has an unknown option") from error
    return Trial(
        record.number,
        genotype,
        record.fidelity,
        "done" if frozen.state == TrialState.COMPLETE else "failed",
        record.metrics,
        record.cost_s,
        record.reason,
        tuple(record.beside),
    )


def _own_space(origin: object, settings: object) -> Space | None:
    """One of the engine's own spaces; code of the user's own is not run."""
    if not isinstance(origin, str) or not origin or is_plugin(origin) or not isinstance(settings, dict):
        return None
    try:
        return load(origin, **settings)
    except NasError:  # one of another version
        return None
