"""Peak memory: how many bytes of tensors are alive at once while a block runs, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, UntypedStorage
from torch._ops import OpOverload

from nas.dispatch import Args, Kwargs, Seeing, storage_of, tensors


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
    with Seeing(_Following(peak).see):
        yield peak


class _Following:
    """Adds up storages from when they are made until they die."""

    def __init__(self, peak: Peak) -> None:
        self.peak = peak
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}
        self._total = 0

    def see(self, operator: OpOverload, args: Args, kwargs: Kwargs, output: object) -> None:  # noqa: ARG002 - a `See`
        known = {storage_of(tensor) for tensor in tensors((args, kwargs))}
        for tensor in tensors(output):
            if storage_of(tensor) not in known:
                self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def died(_: object) -> None:
            del self._alive[key]
            self._total -= size

        self._alive[key] = weakref.ref(storage, died)
        self._total += size
        self.peak.bytes = max(self.peak.bytes, self._total)
