"""Where the workers of one machine compute: each on a GPU of its own, or on its share of the cores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nas import devices
from nas.errors import ConfigError


@dataclass(frozen=True)
class Slot:
    """The place of one worker.

    gpu: what `CUDA_VISIBLE_DEVICES` shall be, None on the CPU. threads: of PyTorch's operations.
    """

    number: int
    gpu: str | None
    threads: int

    @property
    def device(self) -> str:
        """The name of the device, as the worker itself sees it."""
        return "cpu" if self.gpu is None else "cuda"

    def environment(self) -> dict[str, str]:
        """The environment of the worker's process."""
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        gpu = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}
        return {**os.environ, **threads, **gpu}

    def __str__(self) -> str:
        return f"worker {self.number}" + ("" if self.gpu is None else f" on GPU {self.gpu}")


def make_slots(count: int, gpus: Sequence[str]) -> list[Slot]:
    """Places for `count` workers, spread evenly over the GPUs, or over the cores where there is none."""
    threads = max(1, min(torch.get_num_threads(), cores()) // count)
    return [Slot(number, gpus[number % len(gpus)] if gpus else None, threads) for number in range(count)]


def gpus_of(device: str) -> list[str]:
    """What workers on a device of that name (`auto`, `cpu`, `cuda`, `cuda:1`) put in `CUDA_VISIBLE_DEVICES`.

    Raises:
        ConfigError: for a device that workers cannot share out.
    """
    resolved = devices.resolve(device)
    if resolved.type == "cpu":
        return []
    if resolved.type != "cuda":
        raise ConfigError(f"workers compute on cpu or cuda, got device {device!r}; set workers to 1")
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
