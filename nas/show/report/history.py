"""The studies of a run as they were written down, read without the space that they search."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.errors import ConfigError
from nas.files.schemas import StudyRecord, TrialRecord, checked
from nas.searchers.goals import Goals
from nas.searchers.halving import longest
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
