"""Execution paths against each other: the same steps on copies of one network, in turns, in one process."""

from __future__ import annotations

import copy
import re
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.profiler import profile

from nas.oneshot.fused.execution import execute_cells
from nas.peak import peak_memory
from nas.recipe import Execution

PATHS: dict[str, tuple[Execution, bool]] = {
    "plain": ("plain", False),
    "plain, channels last": ("plain", True),
    "batched": ("batched", True),
    "kernels": ("kernels", True),
}
"""Execution, and whether images come with channels last. The first is how published code runs."""
COMPUTING = re.compile(
    r"^aten::(mkldnn_conv|conv.*backward|native_batch|max_pool.*indices|avg_pool|mul|add|relu|threshold|cat)"
)
"""Names of the calls that are counted: those that read and write maps."""

Step = Callable[[int, bool], float]
"""Does the step of that number, whose images have channels last or not, and returns its loss."""
Begin = Callable[[nn.Module], Step]
"""Makes what does the steps of a network."""


def compare(
    network: nn.Module, begin: Begin, *, steps: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """For each path that the device has: milliseconds of a step (median), and what else can be told of it.

    ratio: how many times faster than the first path. peak_MiB: of tensors, in a step. calls: of the library.
    loss_difference: the largest from the first path's losses.
    """
    paths = [path for path in PATHS if path != "kernels" or device.type == "cuda"]
    runs = {path: _started(network, begin, path, device) for path in paths}
    losses = {path: [run(0)] for path, run in runs.items()}
    seconds: dict[str, list[float]] = {path: [] for path in paths}
    for number in range(1, 1 + steps):
        for path, run in runs.items():
            started = time.perf_counter()
            losses[path].append(run(number))
            seconds[path].append(time.perf_counter() - started)
    rows = {}
    for path, run in runs.items():
        with profile() as profiler:
            run(0)
        with peak_memory(device) as peak:
            run(0)
        median = statistics.median(seconds[path])
        rows[path] = {
            "ms": 1e3 * median,
            "ratio": statistics.median(seconds[paths[0]]) / median,
            "peak_MiB": peak.bytes / 2**20,
            "calls": sum(event.count for event in profiler.key_averages() if COMPUTING.search(event.key)),
            "loss_last": losses[path][-1],
            "loss_difference": _farthest(losses[paths[0]], losses[path]),
        }
    return rows


def difference_in_float64(network: nn.Module, begin: Begin, *, steps: int, device: torch.device) -> float:
    """The largest difference of the losses of `plain` and `batched`, where rounding has no time to grow."""
    exact = copy.deepcopy(network).double()
    runs = [_started(exact, begin, path, device) for path in ("plain", "batched")]
    plain, batched = ([run(number) for number in range(steps)] for run in runs)
    return _farthest(plain, batched)


def in_layout(x: Tensor, *, channels_last: bool) -> Tensor:
    """Images with their channels last in memory, or first."""
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _started(network: nn.Module, begin: Begin, path: str, device: torch.device) -> Callable[[int], float]:
    execution, last = PATHS[path]
    own = copy.deepcopy(network)
    execute_cells(own, execution, device)
    step = begin(own)
    return lambda number: step(number, last)


def _farthest(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
