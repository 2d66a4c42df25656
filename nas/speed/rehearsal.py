"""Many workers on one study in compressed time: whether a store would keep up with them."""

from __future__ import annotations

import dataclasses
import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from nas.seeding import rng
from nas.study import Study
from nas.types import Trial
from nas.workers.claims import Leased, leased
from nas.workers.identity import Identity

T = TypeVar("T")
What = Literal["ask", "beat", "tell"]


@dataclass
class Rehearsal:
    """A search whose trials take no time, but whose every call to the store is a real one.

    views: the study as several processes see it; each stands for many workers.
    workers, trials: how many. shortest_s, longest_s: what a trial takes, uniformly distributed.
    lease_s: see `nas.workers.claims.Leased`; four beats come in it.

    The workers ask one after the other, as they must. Of every call, what it takes beyond the processor time
    of its own process is the store's, as if that did one thing at a time.
    """

    views: Sequence[Study]
    workers: int
    trials: int
    shortest_s: float = 300.0
    longest_s: float = 900.0
    lease_s: float = 120.0

    def __post_init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        """What calls took, by kind; `wait` is what workers waited for their turn to ask."""
        self.now = self.store_s = 0.0
        """On the simulated clock: the end, and what the store had to do."""
        self._turn_free, self._asked = 0.0, 0
        self._trials: dict[int, tuple[Trial, float]] = {}
        self._claims: dict[int, Leased] = {}
        self._rng = rng(0, "rehearsal")

    def run(self) -> None:
        """Until all trials have ended."""
        events: list[tuple[float, int, What]] = [
            (float(self._rng.uniform(0, self.longest_s)), worker, "ask") for worker in range(self.workers)
        ]
        heapq.heapify(events)
        while events:
            due, worker, what = heapq.heappop(events)
            if what != "ask" or self._asked < self.trials:
                self.now = max(self.now, due)
                heapq.heappush(events, self._happen(due, worker, what))

    @property
    def summary(self) -> dict[str, float | list[float]]:
        """Throughput and how busy the turn and the store were; mean and 99th percentile of calls, in ms."""
        shares = {
            "trials_per_s": self._asked / self.now,
            "turn_busy": sum(self.seconds["ask"]) / self.now,
            "store_busy": self.store_s / self.now,
        }
        times = {f"{what}_ms": 1e3 * np.array(spans) for what, spans in self.seconds.items()}
        return {**shares, **{w: [float(t.mean()), float(np.quantile(t, 0.99))] for w, t in times.items()}}

    def _happen(self, due: float, worker: int, what: What) -> tuple[float, int, What]:
        """Does what is due, and says what is next."""
        study = self._view(worker)
        if what == "tell":
            trial, _ = self._trials.pop(worker)
            metrics = {"val_acc": float(self._rng.random())}
            self._timed(what, lambda: study.tell(trial, metrics, self.longest_s))
            return due, worker, "ask"
        if what == "ask":
            trial = self._timed(what, study.ask)
            self._asked += 1
            self.seconds["wait"].append(max(0.0, self._turn_free - due))
            due = self._turn_free = max(due, self._turn_free) + self.seconds["ask"][-1]
            self._trials[worker] = trial, due + float(self._rng.uniform(self.shortest_s, self.longest_s))
        else:
            self._beat(study, worker, round(4 * due / self.lease_s))
        next_beat, end = due + self.lease_s / 4, self._trials[worker][1]
        return (end, worker, "tell") if end <= next_beat else (next_beat, worker, "beat")

    def _view(self, worker: int) -> Study:
        """The study as a worker sees it, who is on a machine of his own."""
        study = self.views[worker % len(self.views)]
        if worker not in self._claims:
            who = dataclasses.replace(Identity.of_this_process(), place=f"machine {worker}")
            claims = leased(study.storage, who, lease_s=self.lease_s)(study.optuna_study)
            assert isinstance(claims, Leased)
            self._claims[worker] = claims
        study.claims = self._claims[worker]
        return study

    def _beat(self, study: Study, worker: int, count: int) -> None:
        study_id = study.storage.get_study_id_from_name(study.name)
        number = self._trials[worker][0].number
        trial_id = study.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        if not self._timed("beat", lambda: self._claims[worker].beat(trial_id, count)):
            raise AssertionError(f"trial {number} was taken from worker {worker}, which lives")

    def _timed(self, what: What, work: Callable[[], T]) -> T:
        start, processor = time.perf_counter(), time.process_time()
        outcome = work()
        span, own = time.perf_counter() - start, time.process_time() - processor
        self.seconds[what].append(span)
        self.store_s += max(0.0, span - own)
        return outcome
