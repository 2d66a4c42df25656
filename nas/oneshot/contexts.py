"""What is changed for a while and then put back as it was: tensors, the mode of a network, a state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.space.cell import Cell
from nas.space.mixed_op import MixedOp


@contextmanager
def kept(tensors: Iterable[Tensor]) -> Iterator[Callable[[], None]]:
    """Runs a block, then gives the tensors back their values; so does calling what the block is given."""
    own = [tensor.detach() for tensor in tensors]
    saved = [torch.empty_like(tensor) for tensor in own]
    _put(saved, own)

    def back() -> None:
        _put(own, saved)

    try:
        yield back
    finally:
        back()


@torch.no_grad()
def _put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Gives tensors values, all of a type in one call: a supernet has thousands, each a launch of its own."""
    for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
        pairs = [(a, b) for a, b in zip(tensors, values, strict=True) if a.dtype == kind]
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])


@contextmanager
def in_training(network: nn.Module) -> Iterator[None]:
    """Runs a block with batch-norm on batch statistics, without drop-path or dropout on identities.

    Batch-norm records none of these statistics: a graph that is to be differentiated twice must not see them
    change.
    """
    before = {module: module.training for module in network.modules()}
    rates = {cell: cell.drop_path for cell in network.modules() if isinstance(cell, Cell)}
    skips = {op: op.skip_dropout for op in network.modules() if isinstance(op, MixedOp)}
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    recording = [norm.track_running_stats for norm in norms]
    network.train()
    for norm in norms:
        norm.track_running_stats = False
    for cell in rates:
        cell.drop_path = 0.0
    for op in skips:
        op.skip_dropout = None
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
        for norm, records in zip(norms, recording, strict=True):
            norm.track_running_stats = records
        for cell, rate in rates.items():
            cell.drop_path = rate
        for op, share in skips.items():
            op.skip_dropout = share


@contextmanager
def without_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Runs a block in which no gradients of the parameters are computed, whatever they have had before."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad = True


def copied(state: Any) -> Any:  # noqa: ANN401 - whatever a state is made of
    """A copy of a state, its tensors on the CPU; of dicts, lists, tuples, tensors and plain values."""
    if isinstance(state, Tensor):
        return torch.empty_like(state, device="cpu").copy_(state.detach())
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state
