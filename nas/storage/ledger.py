"""The trials of a study: written to its storage, and as they were last seen there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.errors import ConfigError
from nas.storage.finishing import finish_trial
from nas.storage.study_record import Record
from nas.types import Trial

_log = logging.getLogger("nas")

OVERDUE = "overdue"
"""The attribute of a trial that says how often it took too long."""


class Ledger:
    """Reads and writes trials; whose they are to evaluate is the business of others.

    trials: all of them, in order of their numbers.
    under_way: those that had not ended when they were last seen.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, record: Record) -> None:
        self._study, self._storage, self._record = study, storage, record
        self.trials: list[Trial] = []
        self.under_way: list[FrozenTrial] = []
        self._ids: list[int] = []

    def sync(self) -> None:
        """Brings the trials up to date with what other processes have written."""
        try:
            found = self._study.get_trials(deepcopy=False)
        except KeyError as error:
            raise ConfigError(
                f"study {self._record.name!r} was deleted or renamed while this process was at work on it"
            ) from error
        for frozen in found[len(self.trials) :]:
            self._append(self._record.read(frozen), frozen._trial_id)
        self.under_way = [frozen for frozen in found if self.trials[frozen.number].state == "running"]
        for frozen in self.under_way:
            self.trials[frozen.number] = self._record.read(frozen)
        self.under_way = [frozen for frozen in self.under_way if not frozen.state.is_finished()]

    def id_of(self, number: int) -> int:
        """What the storage calls a trial."""
        return self._ids[number]

    def frozen(self, trial: Trial) -> FrozenTrial:
        """A trial as the storage keeps it."""
        return self._record.write(trial)

    def add(self, trial: Trial, attributes: Mapping[str, object] | None = None) -> Trial:
        """Writes down a trial that is not there yet; returns it under the number that it got.

        attributes: what else is to be known of it where other processes write down trials, too.
        """
        frozen = self.frozen(trial)
        frozen.user_attrs |= attributes or {}
        study_id, storage = self._study._study_id, self._storage
        trial_id = storage.create_new_trial(study_id, frozen)
        if attributes and storage.get_trial_id_from_study_id_trial_number(study_id, trial.number) != trial_id:
            # A process that was frozen just now has lost its turn, and another one has used the number.
            self.sync()
            return self.trials[self._ids.index(trial_id)]
        self._append(trial, trial_id)
        return trial

    def end(self, trial: Trial) -> bool:
        """Records how a trial ended; False where another process was first."""
        if not finish_trial(self._storage, self._study._study_id, trial.number, self.frozen(trial)):
            return False
        self.trials[trial.number] = trial
        return True

    def fail(self, frozen: FrozenTrial, reason: str) -> None:
        """Records that a trial under way has failed without its worker's saying so."""
        _log.warning("study %r: trial %d failed, %s", self._record.name, frozen.number, reason)
        self.end(replace(self.trials[frozen.number], state="failed", reason=reason))

    def wait(self, frozen: FrozenTrial, *, overdue: int = 0) -> None:
        """Lets a trial under way wait for another worker. overdue: how often it took too long."""
        try:
            if overdue:
                self._storage.set_trial_user_attr(frozen._trial_id, OVERDUE, overdue)
            self._storage.set_trial_state_values(frozen._trial_id, TrialState.WAITING)
        except UpdateFinishedTrialError:  # it ended after all
            return
        _log.info("study %r: trial %d waits for another worker", self._record.name, frozen.number)

    def _append(self, trial: Trial, trial_id: int) -> None:
        self.trials.append(trial)
        self._ids.append(trial_id)
