"""A whole training step as one CUDA graph: what takes thousands of launches becomes one.

The step is wrapped from outside and knows nothing of it. It runs a first time as it is, is captured at the
second, and at the third the replay is compared with the step itself; from then on it is replayed. Where it
cannot be captured, or a replay differs, one warning says so and all steps run as they are. Written for
PyTorch's graphs (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), but not yet run on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

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
        reads = None if self._given_up else self._reads()
        key = (reads, tree_map_only(Tensor, lambda tensor: tensor.shape, inputs))
        if reads is None:
            self._step(inputs)
        elif key != self._key:
            self._key, self._graph, self._inputs, self._trusted = key, None, None, False
            self._beside(inputs)
        elif self._graph is None:
            self._capture(inputs)
        elif not self._trusted:
            self._compare(self._graph, inputs)
        else:
            _copy(self._inputs, inputs)
            self._graph.replay()

    def _beside(self, inputs: Inputs) -> None:
        """A step as it is, on a stream beside torch's own, as is asked for before a capture."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        own = torch.cuda.current_stream()
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

    def _compare(self, graph: torch.cuda.CUDAGraph, inputs: Inputs) -> None:
        """Does the step both ways from the same state; what it leaves is the step's own outcome."""
        moved = [tensor.detach() for tensor in self._moved()]
        before, drawn = _cloned(moved), torch.cuda.get_rng_state()
        _copy(self._inputs, inputs)
        graph.replay()
        replayed = _cloned(moved)
        _copy(moved, before)
        torch.cuda.set_rng_state(drawn)
        with unseeded():
            self._step(inputs)
        away, change = _distance(replayed, moved), _distance(before, moved)
        if not away <= LIMIT * change:
            self._give_up(f"its replay differs by {away / change if change else away:.1e} of what it changes")
        self._trusted = True

    def _give_up(self, why: str) -> None:
        warnings.warn(f"a step runs as it is, without a CUDA graph: {why}", stacklevel=4)
        self._given_up, self._graph, self._inputs = True, None, None
        release()


def _cloned(inputs: Inputs) -> Inputs:
    """The same with memory of its own."""
    copies: Inputs = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), inputs)
    return copies


def _copy(into: object, values: object) -> None:
    """Gives tensors the values of others."""
    for one, other in zip(tree_leaves(into), tree_leaves(values), strict=True):
        if isinstance(one, Tensor):
            one.copy_(other)


def _distance(some: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    """Of all tensors of real numbers together, in the Euclidean norm."""
    pairs = [(one, other) for one, other in zip(some, others, strict=True) if one.is_floating_point()]
    squares = [(one - other).double().square().sum() for one, other in pairs]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
