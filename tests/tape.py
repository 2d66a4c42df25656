"""CUDA graphs on the CPU: calls are recorded with the tensors they touch, and done again on the same memory.

What a graph would keep (numbers that Python has read, addresses of tensors) a tape keeps too; what a graph
refuses (to give a number back to Python) it refuses.
"""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::is_nonzero")
FROM_HOST = ("aten::lift_fresh",)
MADE = (
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::empty_strided",
    "aten::new_empty_strided",
)


class Tape(TorchDispatchMode):
    """A `Recorder` for the CPU.

    captured, replayed: how often steps were.
    """

    def __init__(self):
        super().__init__()
        self.captured = self.replayed = 0
        self.calls = []

    def beside(self):
        return nullcontext()

    def capture(self, run, generators=()):
        self.calls = calls = []
        with self:
            run()
        self.captured += 1

        @torch.no_grad()
        def replay():
            self.replayed += 1
            for call, args, kwargs, outputs in calls:
                again(call, args, kwargs, outputs)

        return replay

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        name = call._schema.name
        if name in WAITING:
            raise RuntimeError(f"{name} is not permitted when stream is capturing")
        if name in FROM_HOST:
            raise RuntimeError(f"{name}: a copy from the host is not permitted when stream is capturing")
        outputs = call(*args, **(kwargs or {}))
        self.calls.append((call, args, kwargs or {}, outputs))
        return outputs


def again(call, args, kwargs, outputs):
    """Does a call again, its outcome where it was."""
    name, schema = call._schema.name, call._schema
    if name in MADE or (not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)):
        return  # memory without values, or a view of memory that is kept
    found = call(*args, **kwargs)
    if any(r.alias_info is not None for r in schema.returns):
        return  # in place
    for before, now in zip(flat(outputs), flat(found), strict=True):
        before.copy_(now)


def flat(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [x for part in outputs for x in flat(part)] if isinstance(outputs, list | tuple) else []
