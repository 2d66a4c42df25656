"""The coordinator's part in a search by several workers: it looks on, and steps in where it must."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from optuna.trial import FrozenTrial, TrialState

from nas.errors import NasError
from nas.study import Study
from nas.training.resumable import Stopped
from nas.types import Trial
from nas.workers.claims import POLL_S, owner_of
from nas.workers.identity import Identity, here
from nas.workers.pool import Pool
from nas.workers.turns import NoTurnError

_log = logging.getLogger("nas")


class Stopwatch:
    """For how long trials have run, by this process's own clock.

    A process that was frozen itself, and its machine perhaps with it, has seen nothing meanwhile: between two
    looks no more than `longest_s` counts.
    """

    def __init__(
        self,
        limit_s: float | None,
        *,
        longest_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s, self._longest_s, self._clock = limit_s, longest_s, clock
        self._looked = clock()
        self._ran: dict[tuple[int, Identity | None, int, int], float] = {}

    def late(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Those of the trials under way that have run for more than the limit since they were begun last."""
        running = {(t.number, *owner_of(t)): t for t in trials if t.state == TrialState.RUNNING}
        now = self._clock()
        passed, self._looked = min(self._longest_s, now - self._looked), now
        self._ran = {key: self._ran[key] + passed if key in self._ran else 0.0 for key in running}
        limit_s = self._limit_s
        return [t for key, t in running.items() if limit_s is not None and self._ran[key] > limit_s]


def coordinate(
    study: Study,
    pool: Pool,
    *,
    trials: int,
    stop: Callable[[], bool],
    on_trial: Callable[[Trial], None],
    trial_timeout_s: float | None = None,
    max_failures: int = 10,
) -> None:
    """Looks after the workers until all have ended, or until `trials` trials have.

    stop: when it raises Stopped, the workers save their trials and end, too; when it is true, they are
      expected to end by themselves.
    on_trial: told of every trial that ends, whoever evaluated it.
    trial_timeout_s: a trial that takes longer is taken from its worker, which is killed; see `Study.give_up`.

    Raises:
        Stopped: when `stop` did.
        NasError: when the search cannot go on; the workers have been ended then.
    """
    watch, told = Stopwatch(trial_timeout_s), {t.number for t in study.history if t.state != "running"}
    with pool:
        try:
            while not pool.finished and study.ended < trials:
                stop()
                _look_after(study, pool, watch, trial_timeout_s)
                new = study.tell_of(on_trial, told)
                told |= new
                if new:
                    pool.progressed()
                study.check_failures(max_failures)
                time.sleep(POLL_S)
        except (Stopped, NasError):
            pool.drain()
            _sweep(study)
            raise
        pool.drain()
    _sweep(study)


def _look_after(study: Study, pool: Pool, watch: Stopwatch, limit_s: float | None) -> None:
    silent = pool.tend()
    for trial in study.under_way:
        owner = owner_of(trial)[0]
        if owner is not None and owner.pid in silent and owner.place == here():
            _give_up(study, trial, "its worker gave no sign of life")
    _sweep(study)
    for trial in watch.late(study.under_way):
        if _give_up(study, trial, f"longer than {limit_s:g} s"):
            owner = owner_of(trial)[0]
            if owner is not None and owner.place == here():
                pool.kill(owner.pid)


def _give_up(study: Study, trial: FrozenTrial, why: str) -> bool:
    try:
        study.give_up(trial, why)
    except NoTurnError as error:
        _log.debug("%s", error)
        return False
    return True


def _sweep(study: Study) -> None:
    """What cannot be swept now, because others ask for trials, is swept the next time, or by them."""
    try:
        study.sweep()
    except NoTurnError as error:
        _log.debug("%s", error)
