"""How many threads a training that runs alone computes with: chosen by timing, taken back on a busy machine.

Threads that wait for each other cost more than they bring where maps are small, and far more where other
programs are at work: beside two of them a step of 0.4 s takes 10 s by two threads on two cores, 1 s by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from nas.errors import TrialError
from nas.run.job import Job
from nas.training.pace import Watch

GAIN = 1.3
"""So many times as fast as one must all threads be, at least, to be taken."""


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
    watch = Watch(step_s)

    def stop() -> bool:
        if torch.get_num_threads() > 1 and watch.is_slow():
            torch.set_num_threads(1)
            job.progress.note(f"{what}: other programs are at work, so that one thread does what {count} did")
        return job.stop()

    with threads(count):
        yield replace(job, stop=stop) if count > 1 else job
