"""CUDA graphs on the CPU: calls are recorded with the tensors they touch, and done again on the same memory.

What a graph would keep (numbers that Python has read, addresses of tensors) a tape keeps too; what a graph
refuses (to give a number back to Python) it refuses.
"""

from collections import Counter
from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::is_nonzero")
FROM_HOST = ("aten::lift_fresh",)
MADE = (
    "aten::empty",
    "aten::empty_like",
    "aten::new_empty",
    "aten::empty_strided",
    "aten::new_empty_strided",
)
NO_WORK = (*MADE, "aten::detach", "aten::alias", "aten::_unsafe_view", "aten::as_strided_")


class Streaming:
    """The part of a `Recorder` that has nothing to do with capturing."""

    calls = None

    def beside(self):
        return nullcontext()

    def stream(self):
        return torch.Generator()

    @contextmanager
    def drawing(self, stream):
        own = []
        self.host(lambda: own.append(exchanged(torch.default_generator, stream.get_state())))
        try:
            yield
        finally:
            self.host(lambda: stream.set_state(exchanged(torch.default_generator, own.pop())))

    def host(self, act):
        """Does what a graph does by itself, now and on every replay."""
        with _disable_current_modes():
            act()
        if self.calls is not None:
            self.calls.append((act, None, None, None))


def exchanged(generator, state):
    before = generator.get_state()
    generator.set_state(state)
    return before


class Refusing(Streaming):
    """A recorder that never captures: the same tensors for numbers, every step as it is."""

    def capture(self, run, generators):
        run()
        return run


class Still(Streaming):
    """A recorder whose replays, but for the first, which is compared, do nothing: the host's work is left."""

    def capture(self, run, generators):
        run()
        runs = [run]
        return lambda: runs.pop()() if runs else None


class Calls(TorchDispatchMode):
    """Counts the calls of the library by name that are work for a GPU: neither views nor empty memory."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        name, schema = call._schema.name, call._schema
        view = not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)
        if name.startswith("aten::") and name not in NO_WORK and not view:
            self.counts[name] += 1
        return call(*args, **(kwargs or {}))


class Tape(Streaming, TorchDispatchMode):
    """A `Recorder` for the CPU.

    captured, replayed: how often steps were.
    """

    def __init__(self):
        super().__init__()
        self.captured = self.replayed = 0

    def capture(self, run, generators=()):
        self.calls = calls = []
        try:
            with self:
                run()
        finally:
            self.calls = None
        self.captured += 1

        @torch.no_grad()
        def replay():
            self.replayed += 1
            for call, args, kwargs, outputs in calls:
                if args is None:
                    call()
                else:
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
