"""How many threads a training that runs alone computes with: chosen by timing, taken back on a busy machine.

Threads that wait for each other cost more than they bring where maps are small, and far more where other programs
are at work: beside two of them a step of 0.4 s takes 10 s by two threads on two cores, and 1 s by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from nas.errors import TrialError
from nas.job.job import Job

GAIN = 1.3
"""All threads must be so many times as fast as one: fewer bits depend on them, and other programs suffer less."""
FAR, PATIENCE = 8.0, 3
"""Steps that take so many times as long as they did, so many of them in a row, take the threads back."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs a block with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def paced(job: Job, what: str, pace: Callable[[], float]) -> tuple[int, float]:
    """The threads for a phase, and the seconds of a step with them; decided once in the life of a job.

    pace: measures the seconds of a step; where it fails, the phase itself will say why.
    """
    most = torch.get_num_threads()

    def choose() -> list[float]:
        found = {}
        for count in (1, most) if job.task.train.x.device.type == "cpu" else (most,):
            with threads(count):
                try:
                    found[count] = pace()
                except TrialError:
                    found[count] = 0.0
        slow, fast = found.get(1, 0.0), found[most]
        return [1, slow] if 1 in found and slow < GAIN * fast else [most, fast]

    count, step_s = job.clock.decide(f"threads {what}", choose, lasting=True)
    return min(int(count), most), step_s


@contextmanager
def suited(job: Job, what: str, pace: Callable[[], float]) -> Iterator[Job]:
    """The job with the threads that suit a phase."""
    if torch.get_num_threads() == 1 or job.team.size > 1:
        yield job
        return
    count, step_s = paced(job, what, pace)
    watch = _Watch(step_s)

    def stop() -> bool:
        if watch.is_slow() and torch.get_num_threads() > 1:
            torch.set_num_threads(1)
            job.progress.note(f"{what}: other programs are at work, so that one thread does what {count} did")
        return job.stop()

    with threads(count):
        yield replace(job, stop=stop) if count > 1 else job


class _Watch:
    """Asked before every step: whether the last ones took far longer than they used to."""

    def __init__(self, step_s: float) -> None:
        self._limit_s, self._slow, self._before = FAR * step_s, 0, time.perf_counter()

    def is_slow(self) -> bool:
        now = time.perf_counter()
        self._slow = self._slow + 1 if now - self._before > self._limit_s > 0 else 0
        self._before = now
        return self._slow >= PATIENCE
