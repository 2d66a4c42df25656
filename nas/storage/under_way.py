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

OWN = "nas"
"""The attribute of a trial that this engine wrote: whole when it began, and whole again when it ended."""
_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class _Known:
    """A trial as it was read last, and those of its attributes that may change, as the database has them."""

    trial: FrozenTrial
    texts: Mapping[str, str]

    def now(self, state: TrialState, start: datetime | None, texts: Mapping[str, str]) -> _Known:
        """The trial as it is now; the same object where nothing has changed."""
        if (state, start, texts) == (self.trial.state, self.trial.datetime_start, self.texts):
            return self
        trial = copy.copy(self.trial)
        trial.state, trial.datetime_start = state, start
        changed = {name: json.loads(text) for name, text in texts.items() if self.texts.get(name) != text}
        trial.user_attrs = {**self.trial.user_attrs, **changed}
        return _Known(trial, texts)


@dataclass
class UnderWay:
    """The trials of this engine's studies that had not ended when they were read last.

    Between begin and end only their state, the time of their last begin, and their attributes change: whose
    they are, and signs of life. To read all the rest of a thousand trials, too, takes half a second.
    """

    _known: dict[int, _Known] = field(default_factory=dict)

    def read(
        self, session: Session, study_id: int, among: Iterable[int], above: int
    ) -> tuple[list[FrozenTrial], set[int]]:
        """Trials under way as they are now, and the ids of those of which all must be read.

        among, above: which trials are looked for: these ids, and all above that one.
        """
        asked = or_(TrialModel.trial_id.in_(set(among)), TrialModel.trial_id > above)
        rows: Iterable[Any] = session.scalars(
            select(TrialModel).where(TrialModel.study_id == study_id, asked)
        )
        found: dict[int, tuple[TrialState, datetime | None]] = {
            row.trial_id: (row.state, row.datetime_start) for row in rows
        }
        fresh = [i for i, (state, _) in found.items() if state in _UNFINISHED and i in self._known]
        texts = self._texts(session, study_id) if fresh else {}
        self._known |= {i: self._known[i].now(*found[i], texts.get(i, {})) for i in fresh}
        return [self._known[i].trial for i in fresh], found.keys() - fresh

    def remember(self, trials: Iterable[FrozenTrial]) -> None:
        """Takes note of trials that were read whole."""
        for trial in trials:
            if trial.state in _UNFINISHED and OWN in trial.user_attrs:
                texts = {name: json.dumps(value) for name, value in trial.user_attrs.items() if name != OWN}
                self._known[trial._trial_id] = _Known(trial, texts)
            else:
                self._known.pop(trial._trial_id, None)

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
