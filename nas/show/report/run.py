"""All that a run's folder tells, finished or not; nothing in it is executed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.errors import ConfigError, NasError
from nas.files.atomic import read_json
from nas.files.manifest import MANIFEST, require_intact
from nas.files.paths import is_file
from nas.files.schemas import (
    ComparedRecord,
    EpochRecord,
    HealthRecord,
    MetricsRecord,
    ReportedArchitectureRecord,
    ReportedRecord,
    StudyRecord,
    TrialRecord,
    checked,
)
from nas.results.alphas import Alphas
from nas.results.run_record import RANDOM, SEARCH, compared_of, read_run
from nas.searchers.goals import Goals
from nas.searchers.halving import longest
from nas.searchers.method_names import SHARED, by_gradients
from nas.space.graph import Graph, cell_graphs, from_dict
from nas.space.loading import is_plugin, load
from nas.space.space import Space
from nas.study.journal import JOURNAL
from nas.study.record import under_way
from nas.study.storage import past_storage, reading
from nas.types import Decision, Genotype, Trial, of_longest_training

JOB = "the job itself"
"""Who evaluates trials of which nothing else is known."""
_STATES = {TrialState.COMPLETE: "done", TrialState.FAIL: "failed"}


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
class Past:
    """One study: what is decided, what for, its trials, and the work on each of them, in the same order."""

    decisions: Sequence[Decision]
    goals: Goals
    trials: Sequence[Trial]
    work: Sequence[Work]

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

    @property
    def names(self) -> list[str]:
        """Those of the decisions."""
        return [decision.name for decision in self.decisions]

    def choices(self, genotype: Genotype) -> dict[str, str]:
        """A genotype in words."""
        return {d.name: d.options[o] for d, o in zip(self.decisions, genotype, strict=True)}


def read_studies(folder: Path) -> dict[str, Past]:
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
        studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
        return {study.study_name.removeprefix(prefix): _past(study) for study in studies}


def _past(study: optuna.Study) -> Past:
    source = f"study {study.study_name!r}"
    known = study.user_attrs.get("nas")
    if known is None:  # killed before anything of it was written
        return Past((), Goals(), (), ())
    record = checked(StudyRecord, known, source, "record of a study")
    decisions = [Decision(name, tuple(options)) for name, options in record.decisions]
    frozen = study.get_trials(deepcopy=False)
    both = [(trial := _trial(one, decisions, source), _work(one, trial)) for one in frozen]
    ended = {trial.number for trial, _ in both}
    running = under_way(study)
    now = time.time()
    both += [(t, Work(JOB, now, None)) for t in running if t.number not in ended]
    both.sort(key=lambda pair: pair[0].number)
    return Past(decisions, Goals.from_dict(known), [t for t, _ in both], [w for _, w in both])


def _trial(frozen: FrozenTrial, decisions: Sequence[Decision], source: str) -> Trial:
    where = f"{source}, trial {frozen.number}"
    record = checked(TrialRecord, frozen.user_attrs.get("nas"), where, "record of a trial")
    return Trial(
        number=record.number,
        genotype=_genotype(frozen.params, decisions, where),
        fidelity=record.fidelity,
        state=_STATES.get(frozen.state, "running"),  # type: ignore[arg-type]
        metrics=record.metrics,
        cost_s=record.cost_s,
        reason=record.reason,
        beside=tuple(record.beside),
    )


def _genotype(params: Mapping[str, Any], decisions: Sequence[Decision], where: str) -> Genotype:
    try:
        return tuple(d.options.index(params[d.name]) for d in decisions)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{where} is damaged: it lacks a decision or has an unknown option") from error


def _work(frozen: FrozenTrial, trial: Trial) -> Work:
    ended = frozen.datetime_complete.timestamp() if frozen.datetime_complete is not None else 0.0
    return Work(frozen.user_attrs["nas"].get("worker") or JOB, ended - trial.cost_s, ended)


_READ = (
    *("run.json", "architecture.json", "metrics.json", "baselines.json", "health.json"),
    *("alphas.npz", "config.toml"),
)
_EMPTY = Past((), Goals(), (), ())


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
    told: ReportedRecord
    search: Past
    random: Past
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

    @cached_property
    def winner(self) -> Trial | None:
        """The first trial of the architecture that was chosen; None where the search has none of it."""
        if self.architecture is None:
            return None
        past = self.search
        choices = self.architecture["choices"]
        return next((t for t in past.done if past.choices(t.genotype) == choices), None)

    @property
    def best(self) -> Trial | None:
        """The best trial of the search by its goals."""
        past = self.search
        return past.goals.ordered(past.longest)[0] if past.longest else None

    @property
    def is_finished(self) -> bool:
        """Whether it has a result."""
        return self.architecture is not None and bool(self.metrics)

    @property
    def is_by_gradients(self) -> bool:
        """Whether its trials are the epochs of a supernet."""
        return by_gradients(self.method)

    def called(self, trial: Trial) -> tuple[str, str]:
        """What a trial of the search is, and its number: epochs are counted from 1, as everywhere."""
        return ("epoch", str(trial.number + 1)) if self.is_by_gradients else ("trial", str(trial.number))

    @property
    def shares_weights(self) -> bool:
        """Whether its trials are evaluated on the weights of a supernet."""
        return bool(self.method) and (
            self.method in SHARED or self.record["config"].get("evaluator") == "shared"
        )

    @cached_property
    def final(self) -> Space | None:
        """The space at the size of the last network, where it is one of the engine's own."""
        return (
            None
            if self.architecture is None
            else _space(self.architecture["space"], self.architecture["settings"])
        )

    @cached_property
    def graphs(self) -> dict[str, Graph]:
        """The cells that were found, without the space."""
        cells = self.architecture["cells"] if self.architecture is not None else {}
        return {kind: from_dict(graph) for kind, graph in cells.items()}

    def cells(self, genotype: Genotype) -> dict[str, Graph]:
        """The cells of a trial; none without the space or where it has changed."""
        if self.space is None or [d.name for d in self.space.decisions] != self.search.names:
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
    told = checked(ReportedRecord, record, folder / "run.json", "record of a run")
    if (folder / MANIFEST).is_file():
        require_intact(folder, *(name for name in _READ if is_file(folder / name)))
    studies = read_studies(folder)
    architecture, metrics = folder / "architecture.json", folder / "metrics.json"
    alphas = folder / "alphas.npz"
    if (found := _json(architecture)) is not None:
        checked(ReportedArchitectureRecord, found, architecture, "architecture")
    numbers = _json(metrics)
    health = _json(folder / "health.json")
    return Run(
        folder.resolve(),
        record,
        told,
        studies.get(SEARCH, _EMPTY),
        studies.get(RANDOM, _EMPTY),
        found,
        {} if numbers is None else checked(MetricsRecord, {"metrics": numbers}, metrics, "metrics").metrics,
        compared_of(folder),
        checked(HealthRecord, health, folder / "health.json", "record of health").epochs if health else (),
        Alphas.read(alphas) if is_file(alphas) else None,
        space
        if space is not None
        else _space(record["space"].get("origin"), record["space"].get("settings")),
    )


def _json(path: Path) -> Any | None:  # noqa: ANN401 - whatever the file holds
    return read_json(path) if is_file(path) else None


def _space(origin: object, settings: object) -> Space | None:
    """One of the engine's own spaces; code of the user's own is not run."""
    if not isinstance(origin, str) or not origin or is_plugin(origin) or not isinstance(settings, dict):
        return None
    try:
        return load(origin, **settings)
    except NasError:  # one of another version
        return None
