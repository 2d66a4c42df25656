"""The processes of this machine that trials are evaluated in, and how many it bears."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from nas import devices
from nas.errors import ConfigError
from nas.files.atomic import temporary_folder
from nas.study.workers import Process


class Processes:
    """Processes that begin when they are needed, and end together.

    folder: where they leave, when they crash, at which line.
    gpus: what `CUDA_VISIBLE_DEVICES` shall be, one after the other; empty on a CPU.
    """

    def __init__(self, folder: Path, gpus: Sequence[str]) -> None:
        self._folder, self.gpus = folder, list(gpus)
        self._all: dict[tuple[int, int], Process] = {}

    def slots(self, count: int, *, threads: int = 1) -> list[Process]:
        """So many of them, each of which computes with so many threads."""
        return [self._slot(number, threads) for number in range(count)]

    def end(self) -> None:
        """Kills them."""
        for process in self._all.values():
            process.end()

    def _slot(self, number: int, threads: int) -> Process:
        key = number, threads
        if key not in self._all:
            gpu = self.gpus[number % len(self.gpus)] if self.gpus else None
            log = self._folder / f"process-{number}-{threads}.txt"
            self._all[key] = Process(log, gpu=gpu, threads=threads)
        return self._all[key]


@contextmanager
def processes_on(device: str) -> Iterator[Processes]:
    """Processes for a block. device: as in `--device`."""
    with temporary_folder() as folder:
        found = Processes(folder, gpus_of(device))
        try:
            yield found
        finally:
            found.end()


def places_on(device: torch.device) -> int:
    """How many trainings are made side by side: on a CPU as many as this process has threads, else one."""
    return min(cores(), torch.get_num_threads()) if device.type == "cpu" else 1


def gpus_of(device: str) -> list[str]:
    """What processes on a device (`auto`, `cpu`, `cuda`, `cuda:1`) put in `CUDA_VISIBLE_DEVICES`.

    Raises:
        ConfigError: for a device that processes cannot share out.
    """
    resolved = devices.resolve(device)
    if resolved.type == "cpu":
        return []
    if resolved.type != "cuda":
        raise ConfigError(f"workers compute on cpu or cuda, got device {device!r}; set workers to 0")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    names = names or [str(number) for number in range(torch.cuda.device_count())]
    return [names[resolved.index]] if ":" in device else names


def cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1
