"""The studies of a run as they were written down, read without the space that they search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from nas.errors import ConfigError
from nas.goals import Goals
from nas.results.records import StudyRecord, TrialRecord, checked
from nas.schedulers.halving import longest
from nas.storage.run import past_storage
from nas.types import Decision, Genotype, Trial, of_longest_training
from nas.workers.claims import owner_of

JOB = "the job itself"
"""Who evaluates the trials of studies that no worker can join."""
_STATES = {TrialState.COMPLETE: "done", TrialState.FAIL: "failed"}


@dataclass(frozen=True, slots=True)
class Work:
    """Who evaluated a trial, and when.

    worker: a process, or `JOB` where only that of the job could do the trial.
    begun_s, ended_s: seconds since 1970 by the clock of the worker's machine. A trial that still runs has no
      end; where a trial was begun more than once, the time it took is that of the last attempt.
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
    storage = past_storage(folder)
    if storage is None:
        return {}
    return {study.study_name: _past(storage, study) for study in storage.get_all_studies()}


def _past(storage: BaseStorage, study: FrozenStudy) -> Past:
    source = f"study {study.study_name!r}"
    known = storage.get_study_user_attrs(study._study_id).get("nas")
    if known is None:  # killed before anything of it was written
        return Past((), Goals(), (), ())
    record = checked(StudyRecord, known, source, "record of a study")
    decisions = [Decision(name, tuple(options)) for name, options in record.decisions]
    frozen = storage.get_all_trials(study._study_id, deepcopy=False)
    trials = [_trial(one, decisions, source) for one in frozen]
    work = [_work(one, trial) for one, trial in zip(frozen, trials, strict=True)]
    return Past(decisions, Goals.from_dict(known), trials, work)


def _trial(frozen: FrozenTrial, decisions: Sequence[Decision], source: str) -> Trial:
    where = f"{source}, trial {frozen.number}"
    record = checked(TrialRecord, frozen.user_attrs.get("nas"), where, "record of a trial")
    return Trial(
        number=frozen.number,
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
    owner = owner_of(frozen)[0]
    begun, ended = _seconds(frozen.datetime_start), _seconds(frozen.datetime_complete)
    if ended is not None and trial.state != "running":
        begun = ended - trial.cost_s
    if trial.state == "running":
        ended = None
    name = JOB if owner is None else f"{owner.host}, process {owner.pid}"
    return Work(name, begun if begun is not None else ended or 0.0, ended)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
