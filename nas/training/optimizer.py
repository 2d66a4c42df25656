"""The descent of a training: SGD with momentum by a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nas.training.recipe import Recipe

MOMENTUM = "momentum_buffer"


class Resting:
    """Lets parameters whose gradient is nothing but zeros rest, as those do that have none.

    So neither weight decay nor momentum moves operations that were not run, or led nowhere. It does not wait
    for the device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)

    @contextmanager
    def during(self, optimizer: torch.optim.SGD) -> Iterator[None]:
        """Runs a step of an optimizer, whose only state is a momentum (see `begin_momenta`)."""
        moving = [p for p in self._parameters if p.grad is not None]
        if not moving:
            yield
            return
        norms = torch._foreach_norm([p.grad for p in moving if p.grad is not None], torch.inf)
        values = [p.detach() for p in moving]
        momenta = [optimizer.state[p].get(MOMENTUM) for p in moving]
        kept = [*values, *(momentum for momentum in momenta if momentum is not None)]
        before = list(torch._foreach_add(kept, 0))
        yield
        moved = shares(torch.stack(norms).ne(0), values)
        # With a share of 0 or 1, an interpolation gives either end to the bit.
        torch._foreach_lerp_(before, kept, [*moved, *moved][: len(kept)])
        torch._foreach_copy_(kept, before)


def begin_momenta(optimizer: torch.optim.SGD) -> None:
    """Gives what has its first gradient a momentum of zeros; a fused step takes those of all or of none."""
    for group in optimizer.param_groups:
        for p in group["params"] if group["momentum"] else ():
            if p.grad is not None and optimizer.state[p].get(MOMENTUM) is None:
                optimizer.state[p][MOMENTUM] = torch.zeros_like(p)


def shares(moves: Tensor, like: list[Tensor]) -> list[Tensor]:
    """1 or 0 for every entry of some tensors, laid out as these are. moves: [tensors]."""
    sizes = [tensor.numel() for tensor in like]
    each = [share.expand(size) for share, size in zip(moves.to(like[0]).unbind(), sizes, strict=True)]
    parts = torch.split(torch.cat(each), sizes)
    return [p.as_strided(t.shape, t.stride(), p.storage_offset()) for p, t in zip(parts, like, strict=True)]


FUSED = ("cpu", "cuda")
"""Devices that move all parameters in one call."""


class Descent:
    """Moves named parameters against their gradients.

    On CUDA the learning rate is a scalar on the device: in a CUDA graph a number would stay what it was.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], recipe: Recipe, device: torch.device) -> None:
        self._parameters, self._recipe = parameters, recipe
        self._optimizer = torch.optim.SGD(
            parameters.values(),
            lr=torch.tensor(recipe.lr, device=device) if device.type == "cuda" else recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=device.type in FUSED or None,
        )

    @property
    def rate(self) -> float | Tensor:
        """The learning rate last set; on CUDA a scalar on the device."""
        rate: float | Tensor = self._optimizer.param_groups[0]["lr"]
        return rate

    @property
    def momentum(self) -> dict[str, Tensor]:
        """The momentum of each parameter that has one."""
        slots = {name: self._optimizer.state[p].get(MOMENTUM) for name, p in self._parameters.items()}
        return {name: slot for name, slot in slots.items() if slot is not None}

    def set(self, lr: float, weight_decay: float) -> None:
        """Sets what the coming step reads."""
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
            group["weight_decay"] = weight_decay

    def clear(self) -> None:
        """Forgets the gradients."""
        self._optimizer.zero_grad()

    def step(self, resting: Resting) -> None:
        """Clips the gradients as the recipe says and moves all parameters but those that rest."""
        if self._recipe.clip:
            nn.utils.clip_grad_norm_(self._parameters.values(), self._recipe.clip)
        begin_momenta(self._optimizer)
        with resting.during(self._optimizer):
            self._optimizer.step()

    def direction(self, gradients: Sequence[Tensor], weight_decay: float) -> Sequence[Tensor]:
        """Turns gradients in place into what a step would subtract per unit of learning rate.

        gradients: one for each parameter, unclipped. Momentum is included, Nesterov's look-ahead is not.
        """
        # All in one call: a supernet has thousands, each a launch of its own.
        values = [parameter.detach() for parameter in self._parameters.values()]
        torch._foreach_add_([*gradients], values, alpha=weight_decay)
        slots = [self._optimizer.state[parameter].get(MOMENTUM) for parameter in self._parameters.values()]
        moving = [(own, slot) for own, slot in zip(gradients, slots, strict=True) if slot is not None]
        if moving:
            own, momenta = zip(*moving, strict=True)
            torch._foreach_add_([*own], [*momenta], alpha=self._recipe.momentum)
        return gradients

    def restore(self, momentum: Mapping[str, Tensor]) -> None:
        """Takes over a momentum as it is."""
        self._optimizer.state.clear()
        for name, slot in momentum.items():
            parameter = self._parameters[name]
            self._optimizer.state[parameter][MOMENTUM] = torch.empty_like(parameter).copy_(slot)


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
