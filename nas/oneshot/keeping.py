"""What is changed for a while and then put back as it was: tensors, and the mode of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nas.cell import Cell


@contextmanager
def kept(tensors: Iterable[Tensor]) -> Iterator[Callable[[], None]]:
    """Runs a block, then gives the tensors back their values; so does calling what the block is given."""
    own = [tensor.detach() for tensor in tensors]
    saved = [tensor.clone() for tensor in own]

    def back() -> None:
        with torch.no_grad():
            for tensor, value in zip(own, saved, strict=True):
                tensor.copy_(value)

    try:
        yield back
    finally:
        back()


@contextmanager
def in_training(network: nn.Module) -> Iterator[None]:
    """Runs a block with batch-norm on batch statistics, without drop-path."""
    before = {module: module.training for module in network.modules()}
    rates = {cell: cell.drop_path for cell in network.modules() if isinstance(cell, Cell)}
    network.train()
    for cell in rates:
        cell.drop_path = 0.0
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
        for cell, rate in rates.items():
            cell.drop_path = rate
