"""The study's history on disk: an Optuna storage on a journal kept whole, see `nas.storage.journal_file`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.storages.journal._storage import JournalOperation as _Op
from optuna.trial import FrozenTrial

from nas.errors import ConfigError, NasError
from nas.storage.finishing import Finisher, same_outcome
from nas.storage.journal_file import SafeJournalBackend
from nas.storage.patience import PATIENT, Patience
from nas.text import shown

JOURNAL = "study.log"
"""The history of a run, inside its folder."""


def journal_storage(path: Path, *, patience: Patience = PATIENT) -> Journal:
    """An Optuna storage on the journal at `path`, which is made when it does not exist.

    Raises:
        ConfigError: when it cannot be opened, or its records make no history.
    """
    try:
        return Journal(SafeJournalBackend(path, patience=patience))
    except NasError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the records of journal {path} make no history ({type(error).__name__}: {shown(str(error))}); "
            "restore it from a copy, or see nas repair"
        ) from error


class Journal(JournalStorage, Finisher):
    """Optuna's journal storage, which records the end of a trial in one piece."""

    def finish_trial(self, study_id: int, number: int, outcome: FrozenTrial) -> bool:
        """Ends a running trial; false when it had ended already, in another way."""
        trial_id = self.get_trial_id_from_study_id_trial_number(study_id, number)
        with self._thread_lock:
            self._sync_with_backend()
            self._replay_result.get_study(study_id)  # raises KeyError when it was deleted
            before = self._replay_result.get_trial(trial_id)
            if before.state.is_finished():
                return same_outcome(before, outcome)
            about = {"worker_id": self._replay_result.worker_id, "trial_id": trial_id}
            logs = [log | about for log in _ending(outcome)]
            self._backend.append_logs(logs)
            return self._is_first(len(logs))

    def _is_first(self, records: int) -> bool:
        """Whether our records ended the trial: Optuna refuses each of ours when another's came before."""
        first = True
        for _ in range(records + 1):
            try:
                self._sync_with_backend()
                break
            except UpdateFinishedTrialError:
                first = False
        return first


def _ending(outcome: FrozenTrial) -> list[dict[str, Any]]:
    """The records that end a trial."""
    attributes: list[dict[str, Any]] = [
        *({"op_code": _Op.SET_TRIAL_USER_ATTR, "user_attr": {k: v}} for k, v in outcome.user_attrs.items()),
        *(
            {"op_code": _Op.SET_TRIAL_SYSTEM_ATTR, "system_attr": {k: v}}
            for k, v in outcome.system_attrs.items()
        ),
    ]
    end = {
        "op_code": _Op.SET_TRIAL_STATE_VALUES,
        "state": outcome.state,
        "values": outcome.values,
        "datetime_complete": datetime.now(tz=UTC).isoformat(timespec="microseconds"),
    }
    return [*attributes, end]
