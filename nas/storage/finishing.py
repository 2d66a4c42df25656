"""The end of a trial, recorded in one piece and by one teller only."""

from __future__ import annotations

from abc import ABC, abstractmethod

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial


class Finisher(ABC):
    """A storage that can record how a running trial ended, with all that was measured, at once."""

    @abstractmethod
    def finish_trial(self, study_id: int, number: int, outcome: FrozenTrial) -> bool:
        """Ends a running trial; false when it had ended already, in another way.

        outcome: its state, values and attributes; the rest of it is not looked at.
        """


def finish_trial(storage: BaseStorage, study_id: int, number: int, outcome: FrozenTrial) -> bool:
    """Ends a running trial in any storage; false when it had ended already, in another way.

    Telling the same outcome twice is the same as telling it once. outcome: see `Finisher.finish_trial`.
    """
    if isinstance(storage, Finisher):
        return storage.finish_trial(study_id, number, outcome)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
    before = storage.get_trial(trial_id)
    if before.state.is_finished():
        return same_outcome(before, outcome)
    try:
        for name, value in outcome.user_attrs.items():
            storage.set_trial_user_attr(trial_id, name, value)
        for name, value in outcome.system_attrs.items():
            storage.set_trial_system_attr(trial_id, name, value)
        return storage.set_trial_state_values(trial_id, outcome.state, outcome.values)
    except UpdateFinishedTrialError:  # by somebody else, in between
        return False


def same_outcome(before: FrozenTrial, outcome: FrozenTrial) -> bool:
    """Whether a trial that has ended, ended like this."""
    attributes = outcome.user_attrs.items() <= before.user_attrs.items()
    return attributes and (before.state, before.values) == (outcome.state, outcome.values)
