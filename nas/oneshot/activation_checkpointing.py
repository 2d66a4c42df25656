"""Activation checkpointing: the inner maps of a supernet's cells are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nas.oneshot.contexts import kept
from nas.oneshot.supernet import Supernet
from nas.space.cell import Cell


def recompute_cells(supernet: Supernet, *, enabled: bool) -> None:
    """Makes the cells of a supernet keep only their inputs while training (Chen et al. 2016), or not."""
    for cell in supernet.network.modules():
        if isinstance(cell, Cell):
            cell.recompute = _recomputing(supernet, cell) if enabled else None


def _recomputing(supernet: Supernet, cell: Cell) -> Callable[..., Tensor]:
    def run(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        again = supernet.remixed()

        @contextmanager
        def second() -> Iterator[None]:
            """The second pass sees the first one's mixture and leaves the running statistics alone."""
            with kept(cell.buffers()), again():
                yield

        def contexts() -> tuple[Any, Any]:
            return nullcontext(), _Again(second)

        out: Tensor = checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
        return out

    return run


class _Again(AbstractContextManager[None]):
    """A context that can be entered once for every backward pass through the same graph."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        context = self._make()
        context.__enter__()
        self._entered.append(context)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._entered.pop().__exit__(kind, error, trace)
