"""Trains one candidate of a run for as long as it is told, again and again: `python -m nas.workers.sample`.

Arguments: the run's folder, the device, and the user's own space where the run has one. Each line on standard
input holds seconds and threads; each is answered by steps a second, bytes of memory taken and bytes left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from nas.evaluation.fidelity import scaled_space, scaled_task
from nas.job.config import make_config
from nas.job.job import Job
from nas.job.preparation import prepare
from nas.results.run_record import read_run
from nas.seeding import isolated, rng
from nas.training.recipe import compressed
from nas.training.resumable import Stopped
from nas.training.train import train

WARM_UP = 3
"""Steps before the first measurement."""
ENDLESS = 10**6
"""Epochs."""
CONTEXT_BYTES = 600 << 20
"""Of a GPU's memory that every process takes beside its tensors."""


def main(folder: Path, device: str, space: str | None = None) -> None:
    """Trains until standard input ends."""
    record = read_run(folder)["config"]
    own = {} if space is None else {"space": space}
    job, _ = prepare(make_config({**record, "device": device, "storage": None, **own}), folder)
    meter = Meter(job.task.train.x.device)
    train_for_ever(job, meter)


def train_for_ever(job: Job, meter: Meter) -> None:
    """Trains a candidate of the cheapest rung until `meter` has had enough."""
    rung = job.plan.ladder.rungs[0]
    space, task = scaled_space(job.space, rung), scaled_task(job.search_task, rung)
    with isolated(0, "sample"):
        network = space.network(space.sample(rng(0, "sample"))).to(task.train.x.device)
    try:
        train(network, task, compressed(job.plan.trial, ENDLESS), seed=0, stop=meter)
    except Stopped:
        return


class Meter:
    """Called before every step: does what the lines on standard input say, and answers them."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._steps = device, self._measured()

    def __call__(self) -> bool:
        """Whether the training is to end, because the input has."""
        return next(self._steps, True)

    def _measured(self) -> Iterator[bool]:
        for _ in range(WARM_UP):
            yield False
        for line in sys.stdin:
            seconds, threads = float(line.split()[0]), int(line.split()[1])
            torch.set_num_threads(threads)
            yield from self._run(seconds)

    def _run(self, seconds: float) -> Iterator[bool]:
        self._wait()
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            yield False
            steps += 1
        self._wait()
        rate = steps / max(time.perf_counter() - begun, 1e-9)
        print(rate, *memory(self._device), flush=True)

    def _wait(self) -> None:
        """Until the device has done all steps."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes that this process takes at most, and bytes that are left, of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) + CONTEXT_BYTES, torch.cuda.mem_get_info(device)[0]
    return _entry("/proc/self/status", "VmHWM:"), min(_entry("/proc/meminfo", "MemAvailable:"), _allowed())


def _entry(file: str, name: str) -> int:
    """A number of kB from a table of the system's, as bytes; 0 or no limit where there is none."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:  # no Linux
        return 0 if name == "VmHWM:" else 2**62
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def _allowed() -> int:
    """Bytes that the container may still take."""
    try:
        most, now = (Path(f"/sys/fs/cgroup/memory.{name}").read_text() for name in ("max", "current"))
        return int(most) - int(now)
    except (OSError, ValueError):  # no such container, or no limit
        return 2**62


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
