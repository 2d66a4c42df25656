"""Steps of a training as CUDA graphs: what takes thousands of launches becomes one.

A step runs a first time as it is, is captured at the second, and at the third the replay is compared with the
step itself; from then on it is replayed. Where it cannot be captured, or a replay differs, a warning says so
and all steps run as they are. Written for PyTorch's graphs and checked on the CPU by recorded calls; not yet
run on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from nas.devices import give_back, release

LIMIT = 0.05
"""Largest difference of a replay from the step itself, in the norm, as a share of what the step changes."""
LIMIT_OF_ONE = 0.25
"""The same of each parameter by itself, so that large changes of others do not hide what one lacks."""
ROUNDING = 1e-3
"""A parameter that changes less, as a share of what half of them do, changes by rounding errors."""


_Pool = Any
"""What torch knows the memory of graphs by."""


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


@cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """The stream that all captures of a process are on, one after the other.

    For every stream that it has seen, cuBLAS keeps a workspace, of 32 MiB on an H100, and the allocator what
    was freed there; a process that trains many candidates would come by as many as torch has.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaRecorder:
    """CUDA graphs whose memory is one pool, on a stream beside that of everything else."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream_of(device)
        self._pool: _Pool = torch.cuda.graph_pool_handle()
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """On that stream, after what came before and before what comes after."""
        own = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(own)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            # Also of a step that failed, whose memory what comes after will get.
            own.wait_stream(self._stream)

    def capture(self, run: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Captures, which does nothing yet, and replays."""
        if not self._graphs:
            # A pool that no graph uses any more must not be used again while any of its memory is in use.
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Around torch's own, which leaves that stream the current one where a capture fails.
        with torch.cuda.stream(self._stream):
            try:
                self._capture(graph, self._pool, run, generators)
            except BaseException:
                self._recover(generators)
                raise
        graph.replay()
        self._graphs.add(graph)
        return graph.replay

    def _capture(
        self,
        graph: torch.cuda.CUDAGraph,
        pool: _Pool | None,
        run: Callable[[], object],
        generators: Sequence[torch.Generator],
    ) -> None:
        for generator in generators:
            graph.register_generator_state(generator)
        # Threads of our own, as one that shows progress, must not break a capture.
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            run()

    def _recover(self, generators: Sequence[torch.Generator]) -> None:
        """Ends what a capture that failed has left as if it still went on.

        The allocator would keep memory for the pool, and the generators would refuse to draw; for these it is
        ended by a capture that does not fail.
        """
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._stream.device.index, self._pool)
            torch._C._cuda_releasePool(self._stream.device.index, self._pool)
        with suppress(RuntimeError):
            number = torch.zeros((), device=self._device)
            self._capture(torch.cuda.CUDAGraph(), None, number.zero_, generators)

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

    @property
    def replays(self) -> bool:
        """Whether steps like the last one are replays, which the device may do much later."""
        return self._trusted

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
            self._compare(self._record, begin)
        else:
            self._replay()

    def forget(self) -> None:
        """Forgets what was captured, as is needed when tensors have been moved to other places."""
        self._key, self._replay, self._trusted = None, None, False

    def _plainly(self, record: Recorder) -> None:
        with record.beside():
            self._step()

    def _capture(self, record: Recorder, begin: Callable[[], None]) -> None:
        why = self._why_not(record)
        if why:
            release()
            begin()
            self._plainly(record)
            self._give_up(f"it cannot be captured: {why}")

    def _why_not(self, record: Recorder) -> str:
        """Captures; returns why that failed, if it did."""
        try:
            self._replay = record.capture(self._step, self._generators)
        except RuntimeError as error:
            return _first_line(error)
        return ""

    def _compare(self, record: Recorder, begin: Callable[[], None]) -> None:
        """Does the step both ways from the same state; what it leaves is the step's own outcome."""
        changed = list(self._moved())
        moved, trained = [tensor.detach() for tensor in changed], [tensor.requires_grad for tensor in changed]
        before = [tensor.clone() for tensor in moved]
        assert self._replay is not None
        self._replay()
        replayed = [tensor.clone() for tensor in moved]
        _set(moved, before)
        begin()
        if not self._fits(record):
            # There is memory for one of the two only.
            self.forget()
            release()
            _set(moved, before)
            begin()
            self._plainly(record)
            self._give_up("there is no memory for it beside a step as it is")
            return
        why = _difference(before, moved, replayed, trained)
        if why:
            self._give_up(why)
        self._trusted = True
        # Of the graph, or of the steps as they are: one of the two will not be asked for again.
        del before, replayed, moved, changed
        give_back()

    def _fits(self, record: Recorder) -> bool:
        """Does a step as it is; false where memory runs out."""
        try:
            self._plainly(record)
        except torch.OutOfMemoryError:
            return False
        return True

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


def _set(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def _first_line(error: BaseException) -> str:
    """What went wrong first: the end of a capture in which anything did fails, too."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return next(iter(str(error).splitlines()), type(error).__name__)


def _difference(
    before: Sequence[Tensor], after: Sequence[Tensor], replayed: Sequence[Tensor], trained: Sequence[bool]
) -> str:
    """In what a replay differs too much from the step itself; empty where in nothing.

    trained: which of the tensors are parameters.
    """
    real = [i for i, tensor in enumerate(after) if tensor.is_floating_point()]
    away, change = _distances(replayed, after, real), _distances(before, after, real)
    total, whole = float(away.square().sum().sqrt()), float(change.square().sum().sqrt())
    if not total <= LIMIT * whole:
        return f"its replay differs by {total / whole if whole else total:.1e} of what it changes"
    own = [at for at, i in enumerate(real) if trained[i]]
    if not own:
        return ""
    roots = torch.tensor([after[real[at]].numel() for at in own], dtype=torch.float64).sqrt()
    most = torch.maximum(change, _distances(before, replayed, real))[own]
    notable = most / roots > ROUNDING * (most / roots).median()
    shares = torch.where(notable, away[own] / most.clamp_min(1e-300), 0.0)
    if not shares.max() <= LIMIT_OF_ONE:
        return f"its replay of a parameter differs by {float(shares.max()):.1e} of what it changes"
    return ""


def _distances(one: Sequence[Tensor], other: Sequence[Tensor], of: Sequence[int]) -> Tensor:
    """[of] The norms of differences, on the CPU."""
    norms = [(one[i] - other[i]).double().norm() for i in of]
    return torch.stack(norms).cpu() if norms else torch.zeros(0, dtype=torch.float64)
