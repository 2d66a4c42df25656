"""The one loop: ask, evaluate, tell, write it down. The history is an Optuna study."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Container, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from nas.errors import ConfigError, DeviceError, ExhaustedError, NoModelError, TrialError
from nas.evaluation.failures import diagnosis
from nas.evaluation.metrics import check_metrics
from nas.files.paths import check_contents, check_name, exists
from nas.goals import Goals
from nas.schedulers.proposal import propose
from nas.schedulers.scheduler import Listed, Scheduler
from nas.seeding import rng
from nas.space import Space
from nas.storage.ledger import OVERDUE, Ledger
from nas.storage.run import past_storage
from nas.storage.study_record import Record, open_study, recorded_goals, warn_of_direction
from nas.text import counted
from nas.types import Trial
from nas.user_code import user_errors
from nas.workers.claims import Alone, Claims, LostError
from nas.workers.silence import OWNER
from nas.workers.turns import NoTurnError

_log = logging.getLogger("nas")

Evaluator = Callable[[Trial, np.random.Generator], Mapping[str, float]]
"""Measures one trial; depends on nothing but its arguments. Raises TrialError when the trial fails."""
_Measured = tuple[Mapping[str, float] | TrialError, float]


class Study:
    """A search in progress, durable in an Optuna storage.

    name: of the study inside `storage`; an existing one is continued.
    seed: with the trial's number, seeds the proposal and the evaluation of every trial.
    announce: write a trial down when it starts, so that others see it running. Evaluations of a few
      milliseconds turn it off and are written once, when done.
    claims: which trials are this process's to evaluate; all of them unless others are at work, too.
    history: every trial so far, in order of their numbers. A trial left running by a killed process is taken
      up again under its own number, so that a resumed study equals an uninterrupted one.
    """

    def __init__(
        self,
        space: Space,
        scheduler: Scheduler,
        storage: BaseStorage,
        *,
        name: str,
        seed: int = 0,
        goals: Goals | None = None,
        announce: bool = True,
        claims: Callable[[optuna.Study], Claims] = lambda _: Alone(),
    ) -> None:
        check_name(name, "study")
        self.space, self.scheduler, self.storage, self.name = space, scheduler, storage, name
        self.seed, self.announce = seed, announce
        self.optuna_study = open_study(storage, name, goals or Goals())
        self.goals = recorded_goals(self.optuna_study, space, goals)
        warn_of_direction(self.goals, name)
        self.ledger = Ledger(self.optuna_study, storage, Record(space, self.goals, name))
        self.claims = claims(self.optuna_study)
        if self.claims.shared and not announce:
            raise ConfigError(f"study {name!r}: trials that are not announced cannot be shared")
        self.sync()

    @property
    def history(self) -> list[Trial]:
        """Every trial so far, in order of their numbers."""
        return self.ledger.trials

    @property
    def under_way(self) -> list[FrozenTrial]:
        """The trials that had not ended when they were last seen."""
        return self.ledger.under_way

    @classmethod
    def read(cls, folder: Path, name: str, space: Space) -> list[Trial]:
        """The history of one study of the run in a folder, empty where there is none; nothing is written."""
        if not exists(folder):
            return []
        check_contents(folder)
        storage = past_storage(folder)
        if storage is None or name not in (study.study_name for study in storage.get_all_studies()):
            return []
        return cls(space, Listed((), 0), storage, name=name).history

    def ask(self) -> Trial:
        """The next trial: one that was left running, else what the scheduler proposes.

        Raises:
            ExhaustedError: when there is nothing left to try.
        """
        trial = self._next()
        if trial is None:
            raise ExhaustedError(f"study {self.name!r}: nothing is left to try, but others are at work")
        return trial

    def sync(self) -> None:
        """Brings the history up to date with what other processes have written."""
        self.ledger.sync()
        self.claims.look(self.under_way)

    def sweep(self) -> None:
        """Brings the history up to date, and lets trials whose workers are gone wait for others.

        Raises:
            NoTurnError: when others keep this process waiting.
        """
        self.sync()
        if any(self._is_left(frozen) for frozen in self.under_way):
            with self.claims.turn():
                self._requeue()

    def give_up(self, trial: FrozenTrial, why: str) -> None:
        """Takes a trial from its worker: the first time it waits for another one, the second time it fails.

        trial: as it was seen; one that another worker has begun meanwhile is left to that one.

        Raises:
            NoTurnError: when others keep this process waiting.
        """
        with self.claims.turn():
            self.sync()
            for frozen in self.under_way:
                same = frozen.user_attrs.get(OWNER) == trial.user_attrs.get(OWNER)
                if frozen.number == trial.number and same and frozen.state == TrialState.RUNNING:
                    self._give_up(frozen, why)

    def tell(self, trial: Trial, metrics: Mapping[str, float], cost_s: float) -> Trial:
        """Records what was measured.

        Raises:
            TrialError: when the metrics are not finite numbers; the trial is not recorded then.
            ConfigError: when a metric that the goals need is not among them, or the trial has ended already.
        """
        if trial.number < len(self.history) and self.history[trial.number].state != "running":
            raise ConfigError(f"study {self.name!r}: trial {trial.number} has ended; it is told once only")
        checked = check_metrics(metrics)
        for name in self.goals.metrics:
            if name not in checked:
                raise ConfigError(
                    f"study {self.name!r}: the evaluator returned no {name!r}; it returned {sorted(checked)}"
                )
        return self._finish(replace(trial, state="done", metrics=checked, cost_s=cost_s))

    def fail(self, trial: Trial, error: TrialError, cost_s: float) -> Trial:
        """Records that a trial failed, why, and what was measured all the same."""
        known = {name: float(value) for name, value in error.metrics.items() if math.isfinite(value)}
        reason = f"{error.reason}: {error}"
        return self._finish(replace(trial, state="failed", reason=reason, metrics=known, cost_s=cost_s))

    def run(
        self,
        evaluate: Evaluator,
        *,
        trials: int,
        stop: Callable[[], bool] = lambda: False,
        on_trial: Callable[[Trial], None] = lambda _: None,
        max_failures: int = 10,
        places: int = 1,
    ) -> str:
        """Evaluates until `trials` trials have ended; returns why it came to an end.

        stop: asked before every trial.
        max_failures: this many failures in a row end the study.
        places: at most so many trials are evaluated at a time, by as many threads; for proposals that do not
          depend on how others went.

        Raises:
            ConfigError: when `max_failures` is below 1.
            NoModelError: after `max_failures` failures in a row, with their reasons and what to do.
            DeviceError: when the GPU fails for good; the trial in which it did is recorded as failed.
        """
        if max_failures < 1:
            raise ConfigError(f"study {self.name!r}: max_failures is {max_failures}, but must be at least 1")
        told = {trial.number for trial in self.history if trial.state != "running"}
        if places > 1:
            self._run_together(
                evaluate, trials, places, stop, lambda: told.update(self.tell_of(on_trial, told))
            )
            return f"{counted(self.ended, 'trial')} done"
        while self.ended < trials:
            if stop():
                return f"stopped after {counted(self.ended, 'trial')}"
            try:
                trial = self._next(trials)
            except ExhaustedError as error:
                return str(error)
            if trial is None:
                self.claims.wait()
            else:
                self._evaluate(trial, evaluate)
            told |= self.tell_of(on_trial, told)
            self.check_failures(max_failures)
        return f"{counted(trials, 'trial')} done"

    def tell_of(self, on_trial: Callable[[Trial], None], told: Container[int]) -> set[int]:
        """Calls `on_trial` with every ended trial whose number is not among `told`; returns their numbers."""
        new = [trial for trial in self.history if trial.state != "running" and trial.number not in told]
        for trial in new:
            on_trial(trial)
        return {trial.number for trial in new}

    @property
    def ended(self) -> int:
        """Number of trials that are done or failed."""
        return sum(trial.state != "running" for trial in self.history)

    @property
    def spent_s(self) -> float:
        """Seconds that all ended trials took."""
        return sum(trial.cost_s for trial in self.history)

    def best(self, count: int = 1) -> list[Trial]:
        """The best trials by the goals, best first; see `Goals.ordered`. None before the first has ended.

        Raises:
            NoModelError: when all that have ended failed, with their reasons and what to do.
        """
        ended = [t for t in self.history if t.state != "running"]
        if ended and all(t.state == "failed" for t in ended):
            raise NoModelError(
                f"study {self.name!r}: all {counted(len(ended), 'trial')} failed:{diagnosis(ended)}"
            )
        return self.goals.ordered([t for t in ended if t.state == "done"])[:count]

    def _next(self, most: int | None = None) -> Trial | None:
        """The next of at most `most` trials; None when all that is left is in the hands of others."""
        if self.claims.shared:
            self.sync()  # which waits for a storage that is away, and says so
        try:
            with self.claims.turn() as check:
                if self.announce:
                    self._requeue()
                if (taken := self._taken()) is not None:
                    return taken
                if most is not None and len(self.history) >= most:
                    return None
                trial = self._proposed()
                check()
                return self.ledger.add(trial, self.claims.stamp()) if self.announce else trial
        except NoTurnError as error:
            _log.debug("%s", error)
            return None
        except ExhaustedError:
            if self.under_way:
                return None
            raise

    def _taken(self) -> Trial | None:
        """The first of the trials under way that nobody works on."""
        for frozen in self.under_way:
            if self.claims.verdict(frozen) == "free" and self.claims.take(frozen):
                return self.history[frozen.number]
        return None

    def _proposed(self) -> Trial:
        return propose(
            self.scheduler,
            self.space,
            self.history,
            self._rng(len(self.history), "ask"),
            beside=tuple(frozen.number for frozen in self.under_way),
            study=self.name,
        )

    def _run_together(
        self,
        evaluate: Evaluator,
        trials: int,
        places: int,
        stop: Callable[[], bool],
        on_end: Callable[[], None],
    ) -> None:
        """Trials that were left running first, then new ones; what they measure is told in this thread."""
        left = [frozen.number for frozen in self.under_way]
        begun: dict[Future[_Measured], Trial] = {}
        threads = ThreadPoolExecutor(places)
        try:
            while self.ended < trials and not stop():
                while len(begun) < places and (left or len(self.history) < trials):
                    new = self.history[left.pop(0)] if left else self.ledger.add(self._proposed(), {})
                    begun[threads.submit(self._measured, new, evaluate)] = new
                for future in wait(begun, return_when=FIRST_COMPLETED).done:
                    self._record(begun.pop(future), *future.result())
                on_end()
        finally:
            threads.shutdown(wait=False)

    def _evaluate(self, trial: Trial, evaluate: Evaluator) -> None:
        try:
            with self.claims.hold(self.ledger.id_of(trial.number)) if self.announce else nullcontext():
                found = self._measured(trial, evaluate)
            self._record(trial, *found)
        except LostError as error:
            _log.warning("study %r: trial %d: %s", self.name, trial.number, error)
            self.sync()

    def _measured(self, trial: Trial, evaluate: Evaluator) -> _Measured:
        """What was measured, or why nothing was, and the seconds that it took."""
        start = time.perf_counter()
        try:
            with user_errors():
                metrics = evaluate(trial, self._rng(trial.number, "evaluate"))
        except TrialError as error:
            return error, time.perf_counter() - start
        return metrics, time.perf_counter() - start

    def _record(self, trial: Trial, found: Mapping[str, float] | TrialError, cost_s: float) -> None:
        if not isinstance(found, TrialError):
            try:
                self.tell(trial, found, cost_s)
            except TrialError as error:  # of numbers that are none
                found = error
            else:
                return
        failed = self.fail(trial, found, cost_s)
        if found.reason == "device":
            raise DeviceError(
                f"study {self.name!r}: nothing more can be computed on the device in this process:"
                f"{diagnosis([failed])}"
            ) from found

    def _finish(self, trial: Trial) -> Trial:
        if not self.announce:
            return self.ledger.add(trial)
        if trial.number >= len(self.history):
            self.sync()
        if self.claims.owns(self.ledger.id_of(trial.number)) and self.ledger.end(trial):
            return trial
        _log.warning(
            "study %r: trial %d was taken over by another worker; the late result is not recorded",
            self.name,
            trial.number,
        )
        self.sync()
        return self.history[trial.number]

    def _requeue(self) -> None:
        """Lets what vanished workers left running wait for others, or fail when they always vanish."""
        self.sync()
        if not (left := [frozen for frozen in self.under_way if self._is_left(frozen)]):
            return
        for frozen in left:
            if self.claims.verdict(frozen) == "lost":
                self.ledger.fail(frozen, "lost: its workers vanished every time it was begun")
            else:
                self.ledger.wait(frozen)
        self.sync()

    def _is_left(self, frozen: FrozenTrial) -> bool:
        running = self.claims.shared and frozen.state == TrialState.RUNNING
        return running and self.claims.verdict(frozen) != "held"

    def _give_up(self, frozen: FrozenTrial, why: str) -> None:
        times = 1 + int(frozen.user_attrs.get(OVERDUE, 0))
        if times > 1:
            self.ledger.fail(frozen, f"timeout: {why}")
        else:
            self.ledger.wait(frozen, overdue=times)
        self.sync()

    def check_failures(self, most: int) -> None:
        """Raises NoModelError when the last `most` ended trials all failed, with a count of their reasons."""
        last = [t for t in self.history if t.state != "running"][-most:]
        if len(last) == most and all(t.state == "failed" for t in last):
            raise NoModelError(
                f"study {self.name!r}: the last {counted(most, 'trial')} failed, so the search stops here:"
                f"{diagnosis(last)}"
            )

    def _rng(self, number: int, purpose: str) -> np.random.Generator:
        return rng(self.seed, self.name, number, purpose)
