"""Moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of a network's parameters and buffers.

    `average ← d·average + (1 - d)·value` with `d = min(decay, (1 + step) / (10 + step))`, the warm-up of
    TensorFlow's ExponentialMovingAverage: without it a short training would average in its random start.
    Integer buffers are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = copied(network.state_dict())

    def update(self, network: nn.Module, step: int) -> None:
        """Takes in the weights after step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        now = network.state_dict()
        real = [name for name, value in now.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in real], [now[n] for n in real], 1 - decay)
        self.restore({name: value for name, value in now.items() if not value.is_floating_point()})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the given averages as they are."""
        for name, value in state.items():
            self.state[name].copy_(value)

    @contextmanager
    def during(self, network: nn.Module) -> Iterator[None]:
        """Runs a block on the averages, then gives the network its own weights back."""
        own = copied(network.state_dict())
        network.load_state_dict(self.state)
        try:
            yield
        finally:
            network.load_state_dict(own)


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state with memory of its own."""
    return {name: value.detach().clone() for name, value in state.items()}
