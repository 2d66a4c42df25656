"""How a study and its trials are written in Optuna's terms, and read back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.errors import ConfigError
from nas.files.folder import check_contents, exists
from nas.files.schemas import TrialRecord, UnderWayRecord, checked
from nas.searchers.goals import Goals
from nas.space.space import Space
from nas.study.storage import JOURNAL, past_storage, reading
from nas.types import Trial

_STATES: dict[TrialState, Literal["done", "failed", "running"]] = {
    TrialState.COMPLETE: "done",
    TrialState.FAIL: "failed",
}
_WRITTEN = {name: state for state, name in _STATES.items()}
UNDER_WAY = "under way"
"""The attribute of a study that lists the trials which have been proposed and have not ended."""
_LOSSES = ("loss", "error", "latency", "cost")
_GAINS = ("acc", "score", "auc", "f1")


@dataclass(frozen=True)
class Record:
    """Turns the trials of one study into Optuna's and back. name: of the study."""

    space: Space
    goals: Goals
    name: str

    def write(self, trial: Trial, worker: str = "") -> FrozenTrial:
        """A trial as Optuna keeps it. worker: who did it, in words."""
        record = {
            "number": trial.number,
            "fidelity": trial.fidelity,
            "metrics": dict(trial.metrics),
            "cost_s": trial.cost_s,
            "reason": trial.reason,
            **({"beside": list(trial.beside)} if trial.beside else {}),
            **({"worker": worker} if worker else {}),
        }
        done = trial.state == "done"
        bounds = {str(bound): bound.excess(trial.metrics) for bound in self.goals.constraints if done}
        return create_trial(
            state=_WRITTEN[trial.state],
            values=[o.value(trial.metrics) for o in self.goals.objectives] if done else None,
            constraints=bounds or None,
            params=self.space.choices(trial.genotype),
            distributions={d.name: CategoricalDistribution(d.options) for d in self.space.decisions},
            user_attrs={"nas": record},
        )

    def read(self, frozen: FrozenTrial) -> Trial:
        """The inverse of `write`.

        Raises:
            ConfigError: when the trial was not written by this engine.
        """
        if "nas" not in frozen.user_attrs or frozen.state not in _STATES:
            raise ConfigError(
                f"study {self.name!r}: trial {frozen.number} was not written by this engine; "
                "only its own studies can be continued"
            )
        source = f"study {self.name!r}, trial {frozen.number}"
        record = checked(TrialRecord, frozen.user_attrs["nas"], source, "record of a trial")
        return Trial(
            number=record.number,
            genotype=self.space.genotype(frozen.params),
            fidelity=record.fidelity,
            state=_STATES[frozen.state],
            metrics=record.metrics,
            cost_s=record.cost_s,
            reason=record.reason,
            beside=tuple(record.beside),
        )


def note_under_way(study: optuna.Study, trials: Sequence[Trial]) -> None:
    """Writes down the trials of a study that have been proposed and have not ended."""
    records = [
        UnderWayRecord(number=t.number, genotype=list(t.genotype), fidelity=t.fidelity, beside=list(t.beside))
        for t in trials
    ]
    study.set_user_attr(UNDER_WAY, [record.model_dump() for record in records])


def under_way(study: optuna.Study) -> list[Trial]:
    """The trials of a study that have been proposed, and may not have ended."""
    source = f"study {study.study_name!r}, trials under way"
    noted = study.user_attrs.get(UNDER_WAY)
    noted = noted if isinstance(noted, list) else []
    records = [checked(UnderWayRecord, record, source, "record of a trial") for record in noted]
    return [Trial(r.number, tuple(r.genotype), r.fidelity, beside=tuple(r.beside)) for r in records]


def read_trials(folder: Path, name: str, space: Space) -> list[Trial]:
    """The history of one study of the run in a folder, empty where there is none; nothing is written."""
    if not exists(folder):
        return []
    check_contents(folder)
    with reading(folder / JOURNAL):
        found = past_storage(folder)
        if found is None or found[1] + name not in optuna.get_all_study_names(found[0]):
            return []
        study = optuna.load_study(study_name=found[1] + name, storage=found[0])
        return all_trials(study, Record(space, recorded_goals(study, space, None), name))


def all_trials(study: optuna.Study, record: Record) -> list[Trial]:
    """The ended trials of a study, and those that were under way in their places."""
    ended = [record.read(frozen) for frozen in study.get_trials(deepcopy=False)]
    begun = {trial.number: trial for trial in (*under_way(study), *ended)}
    if sorted(begun) != list(range(len(begun))):
        raise ConfigError(
            f"study {record.name!r}: {len(begun)} trials have numbers up to {max(begun)}; some of its "
            "records are lost, so that it can only be read by Optuna"
        )
    return [begun[number] for number in range(len(begun))]


def open_study(storage: BaseStorage, name: str, goals: Goals) -> optuna.Study:
    """The study of that name, which is made where there is none."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    if name not in (study.study_name for study in storage.get_all_studies()):
        # Optuna's own function would announce it.
        directions = [
            StudyDirection.MAXIMIZE if o.maximize else StudyDirection.MINIMIZE for o in goals.objectives
        ]
        storage.create_new_study(directions, name)
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler)


def recorded_goals(study: optuna.Study, space: Space, goals: Goals | None) -> Goals:
    """Writes down what the study is for, or checks that it still is; returns the goals.

    Raises:
        ConfigError: when it was made for another space or other goals.
    """
    wanted, name = goals or Goals(), study.study_name
    decisions = [[d.name, list(d.options)] for d in space.decisions]
    known = study.user_attrs.get("nas")
    if known is None:
        study.set_user_attr("nas", {"decisions": decisions, **wanted.to_dict()})
        return wanted
    if not isinstance(known, dict) or known.get("decisions") != decisions:
        raise ConfigError(
            f"study {name!r} was made for a space with other decisions than {space.name!r}; "
            "use another name or another folder"
        )
    before = Goals.from_dict(known)
    if goals not in (None, before):
        raise ConfigError(
            f"study {name!r} was made for {before}, not for {goals}; use another name or folder"
        )
    return before


def warn_of_direction(goals: Goals, name: str) -> None:
    """Warns where a metric is optimised in a direction that its name speaks against."""
    for objective in goals.objectives:
        words = _LOSSES if objective.maximize else _GAINS
        if not objective.added and any(word in objective.metric for word in words):
            verb = "maximises" if objective.maximize else "minimises"
            warnings.warn(
                f"study {name!r} {verb} {objective.metric!r}; is that the right direction?", stacklevel=3
            )
