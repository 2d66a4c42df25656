"""A whole training step as one CUDA graph: what takes thousands of launches becomes one.

The step is wrapped from outside and knows nothing of it. It runs a first time as it is, is captured at the
second, and at the third the replay is compared with the step itself; from then on it is replayed. Where it
cannot be captured, or a replay differs, one warning says so and all steps run as they are. Written for
PyTorch's graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs); not yet run on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from nas.devices import release
from nas.seeding import unseeded

Inputs = TypeVar("Inputs")
LIMIT = 0.05
"""Largest difference of a replay from the step itself, in the norm, as a share of what the step changes."""


class GraphedStep(Generic[Inputs]):
    """A step that is replayed as a CUDA graph.

    step: changes tensors that stay where they are, by its inputs: tensors, in tuples, of shapes that stay.
    moved: all tensors that it changes.
    reads: what Python reads on the way and may change from one step to the next, upon which the step is
      captured anew; None where the coming step cannot be captured.

    What a step draws on the device it draws from torch's own stream, which has been seeded before the step.
    """

    def __init__(
        self,
        step: Callable[[Inputs], None],
        *,
        moved: Callable[[], Iterable[Tensor]],
        reads: Callable[[], Hashable | None],
    ) -> None:
        self._step, self._moved, self._reads = step, moved, reads
        self._key: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Inputs | None = None
        self._trusted = self._given_up = False

    def __call__(self, inputs: Inputs) -> None:
        """Does a step."""
        key = None if self._given_up else (self._reads(), _shapes(inputs))
        if key is None or key[0] is None:
            self._step(inputs)
        elif key != self._key:
            self._key, self._graph, self._inputs, self._trusted = key, None, None, False
            self._beside(inputs)
        elif self._graph is None:
            self._capture(inputs)
        elif not self._trusted:
            self._compare(inputs)
        else:
            _copy(self._inputs, inputs)
            self._graph.replay()

    def _beside(self, inputs: Inputs) -> None:
        """A step as it is, on a stream beside torch's own, as is asked for before a capture."""
        stream, own = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(own)
        with torch.cuda.stream(stream), unseeded():
            self._step(inputs)
        own.wait_stream(stream)

    def _capture(self, inputs: Inputs) -> None:
        self._inputs, graph = _cloned(inputs), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph), unseeded():
                self._step(self._inputs)
        except RuntimeError as error:
            self._give_up(f"it cannot be captured: {next(iter(str(error).splitlines()), error)}")
            self._step(inputs)
            return
        self._graph = graph
        graph.replay()

    def _compare(self, inputs: Inputs) -> None:
        """Does the step both ways from the same state; what it leaves is the step's own outcome."""
        assert self._graph is not None
        moved = [tensor.detach() for tensor in self._moved()]
        before, drawn = _cloned(tuple(moved)), torch.cuda.get_rng_state()
        _copy(self._inputs, inputs)
        self._graph.replay()
        replayed = _cloned(tuple(moved))
        _copy(tuple(moved), before)
        torch.cuda.set_rng_state(drawn)
        with unseeded():
            self._step(inputs)
        real = [i for i, tensor in enumerate(moved) if tensor.is_floating_point()]
        away, change = (_distance([o[i] for i in real], [moved[i] for i in real]) for o in (replayed, before))
        if not away <= LIMIT * change:
            self._give_up(f"its replay differs by {away / change if change else away:.1e} of what it changes")
        self._trusted = True

    def _give_up(self, why: str) -> None:
        warnings.warn(f"a step runs as it is, without a CUDA graph: {why}", stacklevel=4)
        self._given_up, self._graph, self._inputs = True, None, None
        release()


def _shapes(inputs: object) -> Hashable:
    if isinstance(inputs, tuple):
        return tuple(map(_shapes, inputs))
    return inputs.shape if isinstance(inputs, Tensor) else inputs


def _cloned(inputs: Inputs) -> Inputs:
    """The same tuples with memory of their own."""
    if isinstance(inputs, tuple):
        return tuple(map(_cloned, inputs))  # type: ignore[return-value]
    return inputs.detach().clone() if isinstance(inputs, Tensor) else inputs  # type: ignore[return-value]


def _copy(into: object, values: object) -> None:
    """Gives the tensors of some tuples the values of others."""
    if isinstance(into, tuple) and isinstance(values, tuple):
        for one, other in zip(into, values, strict=True):
            _copy(one, other)
    elif isinstance(into, Tensor) and isinstance(values, Tensor):
        into.copy_(values)


def _distance(some: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    squares = [(one - other).double().square().sum() for one, other in zip(some, others, strict=True)]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
