"""The one loop: ask, evaluate, tell, write it down. The history is an Optuna study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from typing import TypeVar

import numpy as np
from optuna.storages import BaseStorage, RDBStorage

from nas.errors import ConfigError, DeviceError, ExhaustedError, NoModelError, TrialError, counted
from nas.evaluate.failure_summary import diagnosis
from nas.files.folder import check_name
from nas.searchers.goals import Goals
from nas.searchers.scheduler import Scheduler, propose
from nas.seeding import rng
from nas.space.space import Space
from nas.study.storage import (
    Record,
    Store,
    note_under_way,
    open_study,
    own,
    read_trials,
    recorded_goals,
)
from nas.study.workers import Evaluator, Measure, Outcome, Workers, check_metrics, measured
from nas.types import Genotype, Trial
from nas.user_code import user_errors

T = TypeVar("T")


class Study:
    """A search in progress, durable in an Optuna storage, which this process alone writes.

    storage: one of Optuna's, or a `Store` that says how it is used.
    name: of the study inside it, an existing one is continued.
    seed: with the trial's number, seeds the proposal and the evaluation of every trial.
    announce: write down that a trial begins, so that it is taken up again under its own number when this
      process is killed, and a resumed study equals an uninterrupted one. Evaluations of a few milliseconds
      turn it off.
    alike: what architectures have in common that need be measured only once at the same fidelity.
    others: trials that were measured elsewhere before.
    history: every trial so far, in order of their numbers.

    Example:
        study = nas.Study(space, nas.Fixed(nas.RandomSearch(), 3), storage, name="first")
        study.run(nas.Trained(space, task, recipe), trials=20)
        print(study.best())
    """

    def __init__(
        self,
        space: Space,
        scheduler: Scheduler,
        storage: BaseStorage | Store,
        *,
        name: str,
        seed: int = 0,
        goals: Goals | None = None,
        announce: bool = True,
        alike: Callable[[Genotype], Hashable] | None = None,
        others: Sequence[Trial] = (),
    ) -> None:
        check_name(name, "study")
        self.space, self.scheduler, self.name, self.seed = space, scheduler, name, seed
        self._announce, self._alike = announce, alike
        self._store = store = storage if isinstance(storage, Store) else Store(storage)
        self._others = {self._key(t): t for t in reversed(others) if t.state == "done"}
        self.optuna_study = self._patiently(
            lambda: open_study(store.storage, store.prefix + name, goals or Goals())
        )
        self.goals = recorded_goals(self.optuna_study, space, goals)
        self._record = Record(space, self.goals, name)
        self._is_own = not isinstance(store.storage, RDBStorage)
        self.history = self._record.read_all(self.optuna_study)
        self._left = [trial.number for trial in self.history if trial.state == "running"]

    read = staticmethod(read_trials)

    # -- ask and tell ----------------------------------------------------------------------------------

    def ask(self, *, lag: int = 0) -> Trial:
        """The next trial: one that was left under way, else what the scheduler proposes.

        lag: so many of the last trials are shown to it as running, whatever has become of them.

        Raises:
            ExhaustedError: when there is nothing left to try.
        """
        if self._left:
            return self.history[self._left.pop(0)]
        number = len(self.history)
        seen = [t if t.number < number - lag else _running(t) for t in self.history]
        beside = tuple(t.number for t in seen if t.state == "running")
        trial = propose(
            self.scheduler, self.space, seen, self._rng(number, "ask"), beside=beside, study=self.name
        )
        if self._announce:
            self.history.append(trial)
            running = [t for t in self.history if t.state == "running"]
            self._write(lambda: note_under_way(self.optuna_study, running))
        return trial

    def tell(self, trial: Trial, metrics: Mapping[str, float], cost_s: float, *, worker: str = "") -> Trial:
        """Records what was measured. worker: by whom, in words.

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
        return self._end(replace(trial, state="done", metrics=checked, cost_s=cost_s), worker)

    def fail(self, trial: Trial, error: TrialError, cost_s: float, *, worker: str = "") -> Trial:
        """Records that a trial failed, why, and what was measured all the same."""
        known = {name: float(value) for name, value in error.metrics.items() if math.isfinite(value)}
        reason = f"{error.reason}: {error}"
        return self._end(replace(trial, state="failed", reason=reason, metrics=known, cost_s=cost_s), worker)

    # -- the loop --------------------------------------------------------------------------------------

    def run(
        self,
        measure: Evaluator | Measure,
        *,
        trials: int,
        stop: Callable[[], bool] = lambda: False,
        on_trial: Callable[[Trial], None] = lambda _: None,
        max_failures: int = 10,
        workers: Workers | None = None,
    ) -> str:
        """Evaluates until `trials` trials have ended; returns why it came to an end.

        stop: asked before every trial.
        on_trial: told of every trial that ends.
        max_failures: this many failures in a row end the study.
        workers: where trials are evaluated, several at a time; in this process, one by one, by default. With
          W of them the proposal of trial n sees the trials up to n - W, whatever ends first, so that the same
          seed gives the same study; where they are not `ordered`, it sees whatever has ended.

        Raises:
            ConfigError: when `max_failures` is below 1.
            NoModelError: after `max_failures` failures in a row, with their reasons and what to do.
            DeviceError: when the GPU fails for good; the trial in which it did is recorded as failed.
        """
        if max_failures < 1:
            raise ConfigError(f"study {self.name!r}: max_failures is {max_failures}, but must be at least 1")
        measure = measure if isinstance(measure, Measure) else Measure(measure)
        flying: dict[Future[Outcome], Trial] = {}
        why = ""
        try:
            while self.ended < trials:
                ended: list[Trial] = []
                if stop():
                    return f"stopped after {counted(self.ended, 'trial')}"
                if not why and self._has_room(len(flying), trials, workers):
                    try:
                        ended += self._begin(measure, flying, workers)
                    except ExhaustedError as error:
                        why = str(error)
                elif flying:
                    for future in wait(flying, return_when=FIRST_COMPLETED).done:
                        ended.append(self._take(flying.pop(future), future.result(), measure))
                else:
                    return why
                for trial in sorted(ended, key=lambda t: t.number):
                    on_trial(trial)
                self._check_failures(max_failures)
        finally:
            if flying and workers is not None:
                workers.end()
        return f"{counted(trials, 'trial')} done"

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

    def _check_failures(self, most: int) -> None:
        """Raises NoModelError when the last `most` ended trials all failed, with a count of their reasons."""
        last = [t for t in self.history if t.state != "running"][-most:]
        if len(last) == most and all(t.state == "failed" for t in last):
            raise NoModelError(
                f"study {self.name!r}: the last {counted(most, 'trial')} failed, so the search stops here:"
                f"{diagnosis(last)}"
            )

    def _has_room(self, flying: int, trials: int, workers: Workers | None) -> bool:
        """Whether another trial may begin now, while so many are evaluated elsewhere."""
        count = 1 if workers is None else workers.count
        if flying >= count or (not self._left and len(self.history) >= trials):
            return False
        if self._left or workers is None or not workers.ordered:
            return True
        seen = max(0, len(self.history) - count + 1)
        return all(trial.state != "running" for trial in self.history[:seen])

    def _begin(
        self, measure: Measure, flying: dict[Future[Outcome], Trial], workers: Workers | None
    ) -> list[Trial]:
        """Answers the next trial from the history, evaluates it here, or sends it to a worker.

        Returns the trial where it has ended.
        """
        lag = workers.count - 1 if workers is not None and workers.ordered else 0
        trial = self.ask(lag=lag)
        if (known := self._measured_before(trial)) is not None:
            return [self.tell(trial, known.metrics, 0.0)]
        if (refused := measure.refuses(trial, trial.before(self.history))) is not None:
            return [self.fail(trial, refused, 0.0)]
        draw, hints = self._rng(trial.number, "evaluate"), measure.hints(trial, trial.known(self.history))
        if workers is None:
            return [self._take(trial, measured(measure.evaluate, trial, draw, hints), measure)]
        flying[workers.submit(measure.evaluate, trial, draw, hints)] = trial
        return []

    def _measured_before(self, trial: Trial) -> Trial | None:
        """A done trial of an architecture alike at the same fidelity, that was done when it was proposed."""
        if self._alike is None:
            return None
        key = self._key(trial)
        if key in self._others:
            return self._others[key]
        return next((t for t in trial.known(self.history) if self._key(t) == key), None)

    def _key(self, trial: Trial) -> Hashable:
        return None if self._alike is None else (self._alike(trial.genotype), trial.fidelity)

    def _take(self, trial: Trial, outcome: Outcome, measure: Measure) -> Trial:
        """Records what a worker found, with the costs that are measured here."""
        found = outcome.found
        if not isinstance(found, TrialError):
            try:
                with user_errors():
                    metrics = {**found, **measure.costs(trial)}
                return self.tell(trial, metrics, outcome.cost_s, worker=outcome.worker)
            except TrialError as error:  # of costs, or of numbers that are none
                found = error
        failed = self.fail(trial, found, outcome.cost_s, worker=outcome.worker)
        if found.reason == "device":
            raise DeviceError(
                f"study {self.name!r}: nothing more can be computed on the device in this process:"
                f"{diagnosis([failed])}"
            ) from found
        return failed

    # -- the storage -----------------------------------------------------------------------------------

    def _end(self, trial: Trial, worker: str) -> Trial:
        frozen, before, tries = self._record.write(trial, worker), self.ended, itertools.count()

        def add() -> None:
            # What was tried before, and seemed to fail, may have got there all the same.
            if next(tries) == 0 or len(self.optuna_study.get_trials(deepcopy=False)) == before:
                self.optuna_study.add_trial(frozen)

        self._write(add)
        self.history[trial.number : trial.number + 1] = [trial]
        return trial

    def _write(self, work: Callable[[], None]) -> None:
        if not self._is_own:
            self._patiently(lambda: own(self.optuna_study, force=self._store.force))
            self._is_own = True
        self._patiently(work)

    def _patiently(self, work: Callable[[], T]) -> T:
        return self._store.patiently(work, what=f"study {self.name!r}")

    def _rng(self, number: int, purpose: str) -> np.random.Generator:
        return rng(self.seed, self.name, number, purpose)


def _running(trial: Trial) -> Trial:
    return replace(trial, state="running", metrics={}, cost_s=0.0, reason="")
