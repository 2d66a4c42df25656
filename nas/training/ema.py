"""Moving averages of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of a network's parameters and buffers.

    `average ← d·average + (1 - d)·value` with `d = min(decay, (1 + step) / (10 + step))`, the warm-up of
    TensorFlow's ExponentialMovingAverage: without it a short training would average in its random start.
    Integer buffers are copied.

    On CUDA the share of the present value is a scalar on the device: in a CUDA graph a number would stay what
    it was.
    """

    def __init__(self, network: nn.Module, decay: float, device: torch.device) -> None:
        self.decay = decay
        self.state = copied(network.state_dict())
        self._share: float | Tensor = torch.zeros((), device=device) if device.type == "cuda" else 0.0

    def follow(self, step: int) -> None:
        """Sets how much of the weights counts after step `step`, counted from 0."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        if isinstance(self._share, Tensor):
            self._share.fill_(share)
        else:
            self._share = share

    def update(self, network: nn.Module) -> None:
        """Takes in the weights as they are."""
        now = network.state_dict()
        real = [name for name, value in now.items() if value.is_floating_point()]
        _approach([self.state[n] for n in real], [now[n] for n in real], self._share)
        if whole := [name for name, value in now.items() if not value.is_floating_point()]:
            torch._foreach_copy_([self.state[n] for n in whole], [now[n] for n in whole])

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


def _approach(averages: Sequence[Tensor], values: Sequence[Tensor], share: float | Tensor) -> None:
    """Moves each average towards its value by a share of the way."""
    if not isinstance(share, Tensor):
        torch._foreach_lerp_([*averages], [*values], share)
        return
    away = torch._foreach_sub([*values], [*averages])
    torch._foreach_mul_([*away], share)
    torch._foreach_add_([*averages], [*away])
