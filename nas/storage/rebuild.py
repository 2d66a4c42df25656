"""A journal told anew without what was lost: trials keep their numbers, and no outcome changes hands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.storages.journal._storage import JournalOperation as Op
from optuna.storages.journal._storage import JournalStorageReplayResult
from optuna.study import StudyDirection
from optuna.trial import TrialState

from nas.storage.salvage import Gap, Line
from nas.storage.sealing import study_begun_in
from nas.text import counted

_REASON = "lost: its record in the journal was damaged"
_UNUSABLE = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What Optuna raises for a record that is not one of its own."""
_MOST_STUDIES = 1000
"""A record that speaks of more lost studies is nonsense itself."""


@dataclass(frozen=True)
class Loss:
    """Records that are gone.

    offset, size: of their bytes in the damaged file. first: number of the first one. records: how many; in a
    journal of an older version, which has no seals, and at the end of the file, how many lines there were.
    """

    offset: int
    size: int
    first: int
    records: int

    def __str__(self) -> str:
        many = f"{counted(self.records, 'record')} from number {self.first}"
        which = f"record {self.first}" if self.records == 1 else many if self.records else "no record"
        return f"byte {self.offset}: {which}, {self.size} bytes"


class Rebuilding:
    """Follows a journal from piece to piece and collects what a whole one would say.

    Where a trial is lost another one of its study stands in for it, to be evaluated again, or failed where
    the study records its trials only when they are done. What is left in part only is evaluated again.

    records: of the new journal. losses: what was left out. affected: what that means, in words.
    """

    def __init__(self, found: Sequence[Line | Gap]) -> None:
        self.records: list[dict[str, Any]] = []
        self.losses: list[Loss] = []
        self.affected: list[str] = []
        self._replay = JournalStorageReplayResult("repair")
        self._gap: Gap | None = None
        # How many records, and how many that begin a trial, stood before the next one in the undamaged file.
        self._due = self._due_trials = 0
        self._guessed = False  # whether no seal has confirmed these
        self._lost_trials = 0
        # Optuna counts the trials of all studies through; records name them by these numbers.
        self._next_trial = 0
        self._ids: dict[int, int] = {}
        self._losses_before: dict[int, int] = {}
        self._measured: set[int] = set()
        self._standing_in: set[int] = set()
        self._names: list[str] = []
        self._donors: dict[int, dict[str, Any]] = {}
        for line in reversed(found):
            if isinstance(line, Line) and line.record["op_code"] == Op.CREATE_TRIAL:
                self._donors[line.record.get("study_id", -1)] = line.record
        for piece in found:
            self._take(piece)
        self._end()

    def _take(self, piece: Line | Gap) -> None:
        if isinstance(piece, Gap):
            self._gap = piece
            return
        if self._gap is not None or (piece.place is not None and piece.place.number != self._due):
            self._cross(piece)
        if piece.place is not None and piece.place.number < self._due:
            self._lose(Gap(piece.offset, piece.text), 0)  # it stands here for a second time
            return
        study = study_begun_in(piece.text)
        if piece.place is not None and study is not None:
            self._stand_in(study, piece.place.own - self._begun(study))
        self._due += 1
        self._due_trials += study is not None
        self._keep(piece.record)

    def _end(self) -> None:
        if self._gap is not None:
            self._lose(self._gap, len(_lines(self._gap.text)))
        for number, trial in self._replay._trials.items():
            running = trial.state == TrialState.RUNNING and number not in self._standing_in
            if running and self._lost_since(number):
                self._say(number, "has lost its end, or is running; it is evaluated again")
        if (more := self._lost_trials - len(self._standing_in)) > 0:
            self.affected.append(f"{more} more trials are lost; the run makes others in their place")

    def _cross(self, line: Line) -> None:
        """Learns from the record behind a gap how much is missing."""
        gap, self._gap = self._gap or Gap(line.offset, b""), None
        self._names = [n.decode(errors="replace") for n in re.findall(rb'"study_name":"([^"]*)"', gap.text)]
        begun = [study for text in _lines(gap.text) if (study := study_begun_in(text)) is not None]
        lost, trials = len(_lines(gap.text)), len(begun)
        if line.place is not None:
            lost, trials = line.place.number - self._due, line.place.trials - self._due_trials
        if gap.text or lost > 0:
            self._lose(gap, max(0, lost))
        if lost >= 0 or self._guessed:
            self._due, self._due_trials = self._due + lost, self._due_trials + trials
            self._next_trial += trials
            self._lost_trials += trials
        self._guessed = line.place is None
        if self._guessed:
            for study in begun:
                self._stand_in(study, 1)

    def _keep(self, record: dict[str, Any]) -> None:
        operation, study = record["op_code"], record.get("study_id")
        if study is not None:
            self._open_studies(study)
        if "trial_id" in record:
            number = self._ids.get(record["trial_id"])
            if number is None:
                return  # what is left of a trial that is lost
            if operation == Op.SET_TRIAL_STATE_VALUES and self._lacks_measurements(number):
                self._say(number, "has lost what was measured; it is evaluated again")
                return
            if operation == Op.SET_TRIAL_USER_ATTR and "nas" in record.get("user_attr", ()):
                self._measured.add(number)
            record = {**record, "trial_id": number}
        counted = self._next_trial + (operation == Op.CREATE_TRIAL)
        if not self._apply(record, old=self._next_trial):
            self.affected.append(f"record {self._due - 1} is left out: it is none of Optuna's")
        if study in self._replay._studies:
            self._next_trial = counted

    def _apply(self, record: dict[str, Any], *, old: int | None = None) -> bool:
        """Adds a record, if Optuna can follow it. old: the number that a trial it begins had before."""
        before = len(self._replay._trials)
        try:
            self._replay.apply_logs([record])
        except _UNUSABLE:
            return False
        self.records.append(record)
        if len(self._replay._trials) > before:
            if old is not None:
                self._ids[old] = before
            self._losses_before[before] = len(self.losses)
            self._donors[record["study_id"]] = record
        return True

    def _begun(self, study: int) -> int:
        """How many trials a study of the new journal has."""
        return len(self._replay._study_id_to_trial_ids.get(study, ()))

    def _stand_in(self, study: int, count: int) -> None:
        """Puts trials in the place of lost ones, where their study has one that can be copied."""
        for _ in range(count):
            self._open_studies(study)
            donor, number = self._donors.get(study, {}), len(self._replay._trials)
            if (
                study not in self._replay._studies
                or "params" not in donor
                or not self._apply(_replica(donor))
            ):
                return
            self._standing_in.add(number)
            again = donor.get("state") == TrialState.RUNNING
            ending = "another architecture is evaluated under its number" if again else "it counts as failed"
            self._say(number, f"is lost; {ending}")

    def _open_studies(self, study: int) -> None:
        """Puts studies in the place of lost ones, up to one that a record speaks of."""
        missing = range(self._replay._next_study_id, study + 1)
        for number in missing if len(missing) <= _MOST_STUDIES else ():
            known = {s.study_name for s in self._replay._studies.values()}
            name = self._names.pop(0) if self._names else f"lost-{number}"
            while name in known:
                name = f"lost-{name}"
            objectives = len(self._donors.get(number, {}).get("values") or [None])
            self._apply(
                {
                    "op_code": Op.CREATE_STUDY,
                    "worker_id": "repair",
                    "study_name": name,
                    "directions": [StudyDirection.MAXIMIZE] * objectives,
                }
            )
            self.affected.append(f"the record that began study {name!r} is lost; it is taken to maximise")

    def _lacks_measurements(self, number: int) -> bool:
        """Whether a trial of this engine is about to end, but what it ended with was in a gap."""
        own = "nas" in self._replay._trials[number].user_attrs
        return own and number not in self._measured and self._lost_since(number)

    def _lost_since(self, number: int) -> bool:
        return self._losses_before[number] < len(self.losses)

    def _lose(self, gap: Gap, records: int) -> None:
        self.losses.append(Loss(gap.offset, len(gap.text), self._due, records))

    def _say(self, number: int, what: str) -> None:
        study = self._replay._studies[self._replay._trial_id_to_study_id[number]]
        self.affected.append(
            f"study {study.study_name!r}: trial {self._replay._trials[number].number} {what}"
        )


def _lines(text: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n") if line]


def _replica(donor: dict[str, Any]) -> dict[str, Any]:
    """A trial like another, as it began, or failed where it was recorded as a whole."""
    if donor.get("state") == TrialState.RUNNING:
        return {**donor, "worker_id": "repair"}
    attributes = dict(donor.get("user_attrs", {}))
    if "nas" in attributes:
        attributes["nas"] = {**attributes["nas"], "metrics": {}, "cost_s": 0.0, "reason": _REASON}
    nothing: dict[str, Any] = {"value": None, "values": None, "system_attrs": {}, "intermediate_values": {}}
    return {**donor, **nothing, "worker_id": "repair", "state": TrialState.FAIL, "user_attrs": attributes}
