"""What a training needs of memory: estimated beforehand, and learned from the trials that ran out of it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import UntypedStorage
from torch._ops import OpOverload

from nas.errors import TrialError
from nas.space.cost import Args, Cost, Kwargs, Seeing, storage_of, tensors
from nas.training.retry import MOST_PASSES
from nas.types import Trial

NEEDED, MEMORY = "needed_bytes", "memory_bytes"
"""Metrics of a trial that ran out of memory: the estimate, and what it had of the device."""
OWN = 0.8
"""Share of a device that a trial must have had to itself for its failure to say something of others."""


def training_bytes(counted: Cost, batch: int) -> int:
    """An estimate of what a training needs at least, to be compared with others of the same batch.

    Weights, gradients and momentum, and what is kept for the backward pass of the smallest part that a batch
    can be divided into (see `nas.training.retry`).
    """
    parts = min(MOST_PASSES, max(1, batch // 2))
    return 12 * counted.params + -(-batch // parts) * counted.activation_bytes


def memory_bytes(device: torch.device) -> int:
    """Total memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    pages = Path("/proc/meminfo")
    if not pages.exists():
        return 2**63
    return 1024 * int(pages.read_text().split()[1])


def own_bytes(device: torch.device) -> int:
    """What of a device's memory other processes do not take; on the CPU all of it."""
    if device.type != "cuda":
        return memory_bytes(device)
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def require_memory(params: int, device: torch.device) -> None:
    """Raises TrialError, reason `oom`, unless weights, momentum and gradients fit in the device's memory."""
    needed, total = 12 * params, memory_bytes(device)
    if needed > total:
        raise TrialError(
            "oom",
            f"{params:,} parameters need {needed / 2**30:.1f} GiB to train, "
            f"the device has {total / 2**30:.1f} GiB",
        )


@contextmanager
def noting(counted: Cost, needed: int, device: torch.device) -> Iterator[None]:
    """Adds to a failure for lack of memory what was estimated, so that later trials can learn from it."""
    try:
        yield
    except TrialError as error:
        if error.reason == "oom":
            sizes = {
                "params": counted.params,
                "macs": counted.macs,
                NEEDED: needed,
                MEMORY: own_bytes(device),
            }
            error.metrics |= {name: float(value) for name, value in sizes.items()}
        raise


def failed_for_memory(history: Sequence[Trial], memory: int) -> Trial | None:
    """The trial with the least estimate that ran out of memory on a device like this one; None without any.

    memory: that of the device. Trials on a smaller device, or on one that others had taken much of, do not
    count.
    """
    told = [t for t in history if t.state == "failed" and {NEEDED, MEMORY} <= t.metrics.keys()]
    comparable = [t for t in told if t.metrics[MEMORY] >= OWN * memory]
    return min(comparable, key=lambda t: t.metrics[NEEDED], default=None)


@dataclass
class Peak:
    """What was measured. bytes: of tensors made inside the block, at the moment when they were most."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measures a block: by the allocator's own count on CUDA, else by following every tensor's storage.

    The second knows nothing of a kernel's private workspace, and makes the block several times slower.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    alive: dict[int, weakref.ref[UntypedStorage]] = {}
    total = 0

    def died(key: int, size: int, _: object) -> None:
        nonlocal total
        del alive[key]
        total -= size

    def see(operator: OpOverload, args: Args, kwargs: Kwargs, output: object) -> None:  # noqa: ARG001 - a `See`
        nonlocal total
        known = {storage_of(tensor) for tensor in tensors((args, kwargs))}
        for tensor in tensors(output):
            if (key := storage_of(tensor)) not in known and key not in alive:
                storage = tensor.untyped_storage()
                size = storage.nbytes()
                alive[key] = weakref.ref(storage, partial(died, key, size))
                total += size
                peak.bytes = max(peak.bytes, total)

    with Seeing(see):
        yield peak
