"""Who may evaluate which trial: everybody for himself, or many workers with leases."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.errors import ConfigError
from nas.training.resumable import Stopped
from nas.workers.identity import Identity
from nas.workers.silence import BEAT, OWNER, Silence
from nas.workers.turn import turn_of
from nas.workers.turns import NoTurnError, Turn

_log = logging.getLogger("nas")

ATTEMPTS = 3
"""How often a trial is begun before it is given up, when its workers vanish and it gets no further."""
POLL_S = 0.5
"""Seconds until a worker without work looks for some again."""

Verdict = Literal["held", "free", "lost"]
"""Of a trial under way: in good hands, there for others, or begun too often in vain to be begun again."""


class LostError(Stopped):
    """The trial belongs to another worker by now, so that this one's work on it is for nothing."""


class Claims(Protocol):
    """Decides about the trials of a study that are under way.

    shared: whether others may be at work on the study, so that its history has to be read again and again.
    """

    shared: bool

    def turn(self) -> AbstractContextManager[Callable[[], None]]:
        """Within it nobody else asks for a trial; what it gives raises NoTurnError when that is over."""

    def stamp(self) -> dict[str, object]:
        """Attributes of a trial that begins here."""

    def verdict(self, trial: FrozenTrial) -> Verdict:
        """What to do about a trial under way."""

    def look(self, trials: list[FrozenTrial]) -> None:
        """Takes note of the trials under way."""

    def take(self, trial: FrozenTrial) -> bool:
        """Takes up a free trial; says whether it worked."""

    def owns(self, trial_id: int) -> bool:
        """Whether what is measured here still counts."""

    def hold(self, trial_id: int) -> AbstractContextManager[None]:
        """Shows signs of life within it. A trial that is stopped is given back."""

    def wait(self) -> None:
        """Passes the time while others have all the trials."""


class Alone:
    """One process at a time: whatever is under way was left behind by one that was killed."""

    shared = False

    def turn(self) -> AbstractContextManager[Callable[[], None]]:
        """Always."""
        return nullcontext(lambda: None)

    def stamp(self) -> dict[str, object]:
        """Nothing."""
        return {}

    def verdict(self, trial: FrozenTrial) -> Verdict:  # noqa: ARG002 - a Claims
        """Free."""
        return "free"

    def look(self, trials: list[FrozenTrial]) -> None:
        """Ignores them."""

    def take(self, trial: FrozenTrial) -> bool:  # noqa: ARG002
        """Works."""
        return True

    def owns(self, trial_id: int) -> bool:  # noqa: ARG002
        """Yes."""
        return True

    def hold(self, trial_id: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Shows nothing."""
        return nullcontext()

    def wait(self) -> None:
        """Never needed."""


class Leased:
    """One of many workers. Each has the trials that it began for as long as it shows signs of life.

    storage, study_id: where the study is. turn: see `nas.workers.turn`.
    lease_s: a worker that shows no sign of life for so long has lost its trial. One that is known to be gone,
      because it was on this machine, has lost it at once.
    heir: whether this process is the only one that leads, so that a trial which another leader was working on
      is free at once: true of whoever has the lock of the folder that the study is in.
    saved: how far a trial got by what is saved of it here, as a number that grows. Workers that vanish do not
      count against a trial that they took further.

    A trial that is lost goes back to the others under its own number, with what its worker saved of it where
    they share a folder. A worker that comes back late finds that out before it trains on, or at the latest
    when its result is refused.
    """

    shared = True

    def __init__(
        self,
        storage: BaseStorage,
        study_id: int,
        turn: Turn,
        identity: Identity,
        *,
        lease_s: float,
        heir: bool = False,
        saved: Callable[[FrozenTrial], int] = lambda _: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity, self.lease_s = identity, lease_s
        self._storage, self._study_id, self._turn, self._heir = storage, study_id, turn, heir
        self._saved = saved
        self._silence = Silence(lease_s / 2, clock=clock)
        self._lost = threading.Event()

    def turn(self) -> AbstractContextManager[Callable[[], None]]:
        """Waits for it a little while; NoTurnError then."""
        return self._turn()

    def stamp(self) -> dict[str, object]:
        """Whose the trial is."""
        return {OWNER: self._claim(1, 0)}

    def verdict(self, trial: FrozenTrial) -> Verdict:
        """Held by a worker that lives, for all that is known; else lost after `ATTEMPTS` in vain."""
        if trial.state == TrialState.WAITING:
            return "free"
        owner, attempt, reached = owner_of(trial)
        if owner is not None and owner.leads and (self._heir or owner.is_gone()):
            return "free"  # ended by its user, or with its machine: that is no fault of the trial
        gone = owner is not None and (owner.is_gone() or owner.worker == self.identity.worker)
        if not gone and self._silence.seconds(trial) <= self.lease_s:
            return "held"
        return "lost" if attempt >= ATTEMPTS and self._saved(trial) <= reached else "free"

    def look(self, trials: list[FrozenTrial]) -> None:
        """Notes who of the others is silent."""
        self._silence.look(trials)

    def take(self, trial: FrozenTrial) -> bool:
        """Takes a trial that waits; whoever sets it running first has it."""
        trial_id, (owner, attempt, before), reached = trial._trial_id, owner_of(trial), self._saved(trial)
        if reached > before:
            attempt, before = 0, reached
        begun = max(1, attempt) if owner is not None and owner.leads else attempt + 1
        try:
            if not self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return False
            self._storage.set_trial_user_attr(trial_id, OWNER, self._claim(begun, before))
        except UpdateFinishedTrialError:
            return False
        return True

    def owns(self, trial_id: int) -> bool:
        """Whether nobody else has begun or ended the trial since it was taken here."""
        trial = self._storage.get_trial(trial_id)
        owner = owner_of(trial)[0]
        return not trial.state.is_finished() and owner is not None and owner.worker == self.identity.worker

    @contextmanager
    def hold(self, trial_id: int) -> Iterator[None]:
        """Counts up the trial's beat in a thread, four times in a lease, so that a long epoch beats too."""
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(trial_id, ended), name="beat", daemon=True)
        thread.start()
        try:
            yield
        except Stopped:
            ended.set()
            thread.join()  # two threads at one storage could take what the other looks at from under it
            self._give_back(trial_id)
            raise
        finally:
            ended.set()
            thread.join()
            self._lost.clear()

    def beat(self, trial_id: int, count: int) -> bool:
        """One sign of life, and a look at the others'; says whether the trial is still this worker's."""
        if not self.owns(trial_id):
            return False
        self._storage.set_trial_user_attr(trial_id, BEAT, count)
        if (
            count % 2 == 0
        ):  # as often as silence counts in full; reading the trials of a thousand is no trifle
            running = (TrialState.RUNNING,)
            self.look(self._storage.get_all_trials(self._study_id, deepcopy=False, states=running))
        return True

    def check(self) -> None:
        """Raises LostError when the trial that is held went to another worker; asked before every step."""
        if self._lost.is_set():
            raise LostError("another worker has taken over the trial")

    def wait(self) -> None:
        """Sleeps."""
        time.sleep(POLL_S)

    def _claim(self, attempt: int, reached: int) -> dict[str, object]:
        return {**self.identity.to_dict(), "attempt": attempt, "reached": reached}

    def _beat(self, trial_id: int, ended: threading.Event) -> None:
        count = 0
        while not ended.wait(self.lease_s / 4):
            count += 1
            try:
                if not self.beat(trial_id, count):
                    self._lost.set()
                    return
            except (UpdateFinishedTrialError, KeyError):  # ended by another, or its study was deleted
                self._lost.set()
                return
            except Stopped:  # while a storage that is away was waited for
                return
            except (StorageInternalError, OSError, ConfigError) as error:
                _log.warning("trial %d: no sign of life could be written (%s)", trial_id, error)

    def _give_back(self, trial_id: int) -> None:
        """Lets the trial wait for another worker, as if it had not been begun here."""
        try:
            with self._turn():
                if self.owns(trial_id):
                    _, attempt, reached = owner_of(self._storage.get_trial(trial_id))
                    back = {**self._claim(attempt - 1, reached), "leads": False}
                    self._storage.set_trial_user_attr(trial_id, OWNER, back)
                    self._storage.set_trial_state_values(trial_id, TrialState.WAITING)
        except (NoTurnError, UpdateFinishedTrialError) as error:
            _log.warning("trial %d is not given back now, but when this process is gone: %s", trial_id, error)


def owner_of(trial: FrozenTrial) -> tuple[Identity | None, int, int]:
    """Who has a trial or had it last, how often it was begun in vain, and how far it had got before."""
    record = trial.user_attrs.get(OWNER)
    known = record if isinstance(record, dict) else {}
    return Identity.read(record), int(known.get("attempt", 0)), int(known.get("reached", 0))


def leased(
    storage: BaseStorage,
    identity: Identity | None = None,
    *,
    lease_s: float = 120.0,
    heir: bool = False,
    saved: Callable[[FrozenTrial], int] = lambda _: 0,
) -> Callable[[optuna.Study], Claims]:
    """What `nas.study.Study` takes as `claims` where many workers share a study in this storage.

    identity: of this worker, that of an ordinary process unless given. lease_s, heir, saved: see `Leased`.
    """
    me = Identity.of_this_process(leads=False) if identity is None else identity

    def claims(study: optuna.Study) -> Claims:
        turn = turn_of(storage, study._study_id)
        return Leased(storage, study._study_id, turn, me, lease_s=lease_s, heir=heir, saved=saved)

    return claims
