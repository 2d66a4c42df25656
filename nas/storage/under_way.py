"""Reading the trials under way of a database again and again, without what cannot have changed."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.storages._rdb.models import TrialModel, TrialUserAttributeModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from nas.workers.silence import OWNER

OWN = "nas"
"""The attribute of a trial that this engine wrote: whole when it began, and whole again when it ended."""
_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class _Known:
    """A trial as it was read last, and those of its attributes that may change, as the database has them."""

    trial: FrozenTrial
    texts: Mapping[str, str]

    def now(self, texts: Mapping[str, str]) -> _Known:
        """The trial as it is now; the same object where nothing has changed."""
        if texts == self.texts:
            return self
        trial = copy.copy(self.trial)
        changed = {name: json.loads(text) for name, text in texts.items() if self.texts.get(name) != text}
        trial.user_attrs = {**self.trial.user_attrs, **changed}
        return _Known(trial, texts)

    def begun_again(self, texts: Mapping[str, str]) -> bool:
        """Whether another worker has it by now, so that it began at another time."""
        return texts.get(OWNER) != self.texts.get(OWNER)


@dataclass
class UnderWay:
    """The trials of this engine's studies that had not ended when they were read last.

    While one worker has a trial, only its attributes change, which are its signs of life. To read all the
    rest of a thousand trials, too, takes half a second.
    """

    _known: dict[int, _Known] = field(default_factory=dict)
    _ended: dict[int, FrozenTrial] = field(default_factory=dict)

    def read(
        self, session: Session, study_id: int, among: Iterable[int], above: int
    ) -> tuple[list[FrozenTrial], set[int]]:
        """Trials under way as they are now, and the ids of those of which all must be read.

        Those that were ended here are given once more, without being read.
        among, above: which trials are looked for: these ids, and all above that one.
        """
        asked = or_(TrialModel.trial_id.in_(set(among)), TrialModel.trial_id > above)
        query = select(TrialModel.trial_id, TrialModel.state).where(TrialModel.study_id == study_id, asked)
        states: dict[int, TrialState] = {trial_id: state for trial_id, state in session.execute(query)}
        known = states.keys() & self._known.keys()
        texts = self._texts(session, study_id) if known else {}
        found = {i: self._now(i, states[i], texts.get(i, {})) for i in known}
        same = {i: trial for i, trial in found.items() if trial is not None}
        same |= {i: self._ended.pop(i) for i in states.keys() & self._ended.keys()}
        return [*same.values()], states.keys() - same.keys()

    def read_one(self, session: Session, trial_id: int) -> FrozenTrial | None:
        """A trial as it is now; None when all of it must be read."""
        if trial_id not in self._known:
            return None
        attribute = TrialUserAttributeModel
        rows = session.execute(
            select(TrialModel.state, attribute.key, attribute.value_json)
            .join(attribute, attribute.trial_id == TrialModel.trial_id)
            .where(TrialModel.trial_id == trial_id)
        ).all()
        states, texts = {row[0] for row in rows}, {row[1]: row[2] for row in rows if row[1] != OWN}
        return self._now(trial_id, states.pop(), texts) if states else None

    def remember(self, trials: Iterable[FrozenTrial]) -> None:
        """Takes note of trials that were read whole."""
        for trial in trials:
            self._ended.pop(trial._trial_id, None)
            if trial.state in _UNFINISHED and OWN in trial.user_attrs:
                texts = {name: json.dumps(value) for name, value in trial.user_attrs.items() if name != OWN}
                self._known[trial._trial_id] = _Known(trial, texts)
            else:
                self._known.pop(trial._trial_id, None)

    def end(self, trial: FrozenTrial, outcome: FrozenTrial, at: datetime) -> None:
        """Takes note of the end of a trial that was recorded here, after which nobody can change it."""
        ended = copy.copy(trial)
        ended.state, ended.values, ended.datetime_complete = outcome.state, outcome.values, at
        ended.user_attrs = {**trial.user_attrs, **_as_read(outcome.user_attrs)}
        ended.system_attrs = {**trial.system_attrs, **_as_read(outcome.system_attrs)}
        self._known.pop(trial._trial_id, None)
        self._ended[trial._trial_id] = ended

    def _now(self, trial_id: int, state: TrialState, texts: Mapping[str, str]) -> FrozenTrial | None:
        """A known trial as it is now; None where it has ended, waits, or has begun again.

        A thread that shows signs of life may have forgotten it meanwhile.
        """
        known = self._known.get(trial_id)
        if known is None or state != known.trial.state or known.begun_again(texts):
            return None
        self._known[trial_id] = known = known.now(texts)
        return known.trial

    def _texts(self, session: Session, study_id: int) -> dict[int, dict[str, str]]:
        """The attributes that may change of all trials under way of a study."""
        attribute = TrialUserAttributeModel
        rows = session.execute(
            select(attribute.trial_id, attribute.key, attribute.value_json)
            .join(TrialModel, TrialModel.trial_id == attribute.trial_id)
            .where(TrialModel.study_id == study_id, TrialModel.state.in_(_UNFINISHED), attribute.key != OWN)
        )
        found: dict[int, dict[str, str]] = defaultdict(dict)
        for trial_id, name, text in rows:
            found[trial_id][name] = text
        return found


def _as_read(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as a database gives them back."""
    return {name: json.loads(json.dumps(value)) for name, value in attributes.items()}
