"""Execution paths against each other: the same steps, in turns, in one process."""

from __future__ import annotations

import copy
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from nas.devices import synchronise
from nas.oneshot.fused.execution import execute_cells
from nas.seeding import isolated
from nas.training.peak import peak_memory
from nas.training.recipe import Execution

WARMING = {"cuda": 4}
"""Steps before those that are timed, 1 unless given: a step is captured as a graph, and trusted, in three."""
COMPUTING = re.compile(
    r"^aten::(mkldnn_conv|conv.*backward|native_batch|max_pool.*indices|avg_pool|mul|add|relu|threshold|cat)"
)
"""Names of the calls that are counted on the CPU: those that read and write maps."""
NO_KERNEL = ("Memcpy", "Memset")
"""What a GPU does that is no kernel begins so."""


@dataclass(frozen=True)
class Path:
    """A way to run steps.

    channels_last: where maps have their channels in memory. graph: whether steps are replayed as CUDA graphs.
    compiled: whether the network is run by `torch.compile`, which the engine itself does nowhere: on a CPU a
      step is slower by it than batched, and compiling takes a minute (results/README.md).
    """

    execution: Execution
    channels_last: bool = True
    graph: bool = False
    compiled: bool = False


COMPILED = "plain, compiled"
PATHS = {
    "plain": Path("plain", channels_last=False),
    "plain, channels last": Path("plain"),
    "batched": Path("batched"),
    "batched, graph": Path("batched", graph=True),
    COMPILED: Path("plain", compiled=True),
}
"""The first is how published code runs; the last one is timed only where it is asked for."""


@dataclass(frozen=True)
class Run:
    """Steps that can be done one after the other.

    advance: does the next one. loss: that of the step done last. compiles: whether the first one compiles, so
    that it must not be watched.
    """

    advance: Callable[[], None]
    loss: Callable[[], float]
    compiles: bool = False


def paths_of(device: torch.device) -> list[str]:
    """The paths that a device has."""
    cuda = device.type == "cuda"
    return [name for name, path in PATHS.items() if not path.compiled and (cuda or not path.graph)]


def compare(
    runs: Mapping[str, Run], *, steps: int, device: torch.device, counts: bool = True
) -> dict[str, dict[str, float]]:
    """For each run: milliseconds of a step (median), and what else can be told of it.

    ratio: how many times faster than the first run. peak_MiB: of tensors that the first steps make, gradients
    and the optimizer's included; where the first one compiles, which takes first_s, those after it.
    kernels_launched: on the GPU in a step; elsewhere calls: of the library's operations on maps; of one more
    step, where it `counts`. loss_difference: the largest from the first run's losses.
    """
    losses: dict[str, list[float]] = {name: [] for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    peaks, firsts = dict[str, int](), dict[str, float]()
    for name, run in runs.items():
        if run.compiles:
            firsts[name] = seconds_of(run.advance, device)
            losses[name].append(run.loss())
        with peak_memory(device) as peak:
            for _ in range(WARMING.get(device.type, 1) - len(losses[name])):
                run.advance()
                losses[name].append(run.loss())
        peaks[name] = peak.bytes
    for _ in range(steps):
        for name, run in runs.items():
            seconds[name].append(seconds_of(run.advance, device))
            losses[name].append(run.loss())
    first = next(iter(runs))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        name: {
            "ms": 1e3 * medians[name],
            "ratio": medians[first] / medians[name],
            "peak_MiB": peaks[name] / 2**20,
            **({"first_s": firsts[name]} if name in firsts else {}),
            **(_launches(run, device) if counts else {}),
            "loss_last": losses[name][-1],
            "loss_difference": _farthest(losses[first], losses[name]),
        }
        for name, run in runs.items()
    }


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long it takes the device to do something, from idle to idle."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def count_kernels(events: Iterable[FunctionEvent]) -> int:
    """How many of a profile's events are kernels on a GPU: no copies, no names given to stretches of time."""
    on_device = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return sum(not event.name.startswith(NO_KERNEL) for event in on_device)


def difference_in_float64(network: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> float:
    """The largest difference of the losses of `plain` and `batched`, where rounding has no time to grow.

    x: [B, C, H, W] of a small batch. y: [B] classes.
    """
    plain, batched = (_exact_losses(network, path, x, y, steps) for path in ("plain", "batched"))
    return _farthest(plain, batched)


def _exact_losses(network: nn.Module, path: Execution, x: Tensor, y: Tensor, steps: int) -> list[float]:
    """The losses of steps of SGD in float64."""
    exact = copy.deepcopy(network).double()
    execute_cells(exact, path, x.device)
    sgd = torch.optim.SGD(exact.parameters(), lr=0.025, momentum=0.9)
    losses = []
    for step in range(steps):
        sgd.zero_grad()
        with isolated(0, "step", step):
            loss = F.cross_entropy(exact(x.double()), y)
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        losses.append(loss.item())
    return losses


def _launches(run: Run, device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run.advance()
        calls = [event.count for event in seen.key_averages() if COMPUTING.search(event.key)]
        return {"calls": sum(calls)}
    synchronise(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run.advance()
        synchronise(device)
    return {"kernels_launched": count_kernels(seen.events())}


def _farthest(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
