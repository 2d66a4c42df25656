"""Steps of a training as CUDA graphs: what takes thousands of launches becomes one.

A step runs a first time as it is, is captured at the second, and at the third the replay is compared with the
step itself; from then on it is replayed. Where it cannot be captured, or a replay differs, a warning says so
and all steps run as they are. Written for PyTorch's graphs and checked on the CPU by recorded calls; not yet
run on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

LIMIT = 0.05
"""Largest difference of a replay from the step itself, in the norm, as a share of what the step changes."""


class Recorder(Protocol):
    """What captures calls on a device."""

    def beside(self) -> AbstractContextManager[None]:
        """Where steps run that are captured later."""

    def capture(self, run: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Does a step, and returns what does it again on the same memory.

        generators: beside torch's own, that the step draws from.

        Raises:
            RuntimeError: when the step does what cannot be captured, as to wait for the device.
        """

    def stream(self) -> torch.Generator:
        """A stream of random numbers of the device."""

    def drawing(self, stream: torch.Generator) -> AbstractContextManager[None]:
        """Where what draws from torch's own stream draws from another one; may be within a step."""


class CudaRecorder:
    """CUDA graphs whose memory is one pool, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """On that stream, after what came before and before what comes after."""
        own = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(own)
        with torch.cuda.stream(self._stream):
            yield
        own.wait_stream(self._stream)

    def capture(self, run: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Captures, which does nothing yet, and replays."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # Threads of our own, as one that shows progress, must not break a capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            run()
        graph.replay()
        return graph.replay

    def stream(self) -> torch.Generator:
        """On that device."""
        return torch.Generator(self._device)

    @contextmanager
    def drawing(self, stream: torch.Generator) -> Iterator[None]:
        """By the state of torch's generator, which is exchanged and not copied: a graph may hold both."""
        default = torch.cuda.default_generators[self._stream.device.index]
        own = default.graphsafe_get_state()
        default.graphsafe_set_state(stream.graphsafe_get_state())
        try:
            yield
        finally:
            default.graphsafe_set_state(own)


def recorder(device: torch.device) -> Recorder | None:
    """What captures on a device; None where nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None


class Captured:
    """A step that is captured and replayed where that is possible.

    step: changes tensors that stay where they are, by tensors that stay where they are; whatever Python reads
      on the way and may change from one call to the next is in the `key` of `run`.
    moved: all tensors that a step changes.
    record: see `recorder`; without one every step runs as it is.
    generators: that a step draws from, beside torch's own.
    otherwise: what becomes of steps that cannot be captured, in words.
    """

    def __init__(
        self,
        step: Callable[[], None],
        moved: Callable[[], Iterable[Tensor]],
        record: Recorder | None,
        generators: Sequence[torch.Generator] = (),
        *,
        otherwise: str = "a step runs as it is, without a CUDA graph",
    ) -> None:
        self._step, self._moved, self._record, self._generators = step, moved, record, generators
        self._otherwise = otherwise
        self._key: Hashable = None
        self._replay: Callable[[], None] | None = None
        self._trusted = False

    @property
    def captures(self) -> bool:
        """Whether steps may come to be captured."""
        return self._record is not None

    def run(self, key: Hashable, begin: Callable[[], None]) -> None:
        """Does a step.

        key: steps of another one are captured anew; None for a step that cannot be captured.
        begin: sets random streams and whatever else the step finds in place, to where it begins.
        """
        begin()
        if self._record is None or key is None:
            self._step()
            return
        if key != self._key:
            self.forget()
            self._key = key
            self._plainly(self._record)
        elif self._replay is None:
            self._capture(self._record, begin)
        elif not self._trusted:
            self._compare(self._record, self._replay, begin)
        else:
            self._replay()

    def forget(self) -> None:
        """Forgets what was captured, as is needed when tensors have been moved to other places."""
        self._key, self._replay = None, None

    def _plainly(self, record: Recorder) -> None:
        with record.beside():
            self._step()

    def _capture(self, record: Recorder, begin: Callable[[], None]) -> None:
        try:
            self._replay = record.capture(self._step, self._generators)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            begin()
            self._plainly(record)
            self._give_up(f"it cannot be captured: {str(error).splitlines()[0]}")

    def _compare(self, record: Recorder, replay: Callable[[], None], begin: Callable[[], None]) -> None:
        """Does the step both ways from the same state; what it leaves is the step's own outcome."""
        moved = [tensor.detach() for tensor in self._moved()]
        before = [tensor.clone() for tensor in moved]
        replay()
        replayed = [tensor.clone() for tensor in moved]
        with torch.no_grad():
            for tensor, value in zip(moved, before, strict=True):
                tensor.copy_(value)
        begin()
        self._plainly(record)
        away, change = _distance(replayed, moved), _distance(before, moved)
        if not away <= LIMIT * change:
            self._give_up(f"its replay differs by {away / change if change else away:.1e} of what it changes")
        self._trusted = True

    def _give_up(self, why: str) -> None:
        warnings.warn(f"{self._otherwise}: {why}", stacklevel=4)
        self.forget()
        self._record = None


def tensors_in(state: object) -> Iterator[Tensor]:
    """All tensors of nested mappings, lists and tuples."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from tensors_in(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors_in(value)


def _distance(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.is_floating_point()]
    squares = [(a - b).double().square().sum() for a, b in pairs]
    return float(torch.stack(squares).sum().sqrt())
