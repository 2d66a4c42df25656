"""How gradients become new weights: SGD with momentum by a recipe, and averages of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nas.errors import TrialError
from nas.training.recipe import Recipe

MOMENTUM = "momentum_buffer"
FUSED = ("cpu", "cuda")
"""Devices on which torch moves all parameters in one call."""


def gradients(
    loss: Tensor, inputs: Sequence[Tensor], *, retain_graph: bool = False, create_graph: bool = False
) -> list[Tensor]:
    """The gradient of `loss` for each input, zero for what it does not depend on."""
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    found: Sequence[Tensor | None] = torch.autograd.grad(
        loss,
        list(inputs),
        allow_unused=True,
        retain_graph=retain_graph or create_graph,
        create_graph=create_graph,
    )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def check_depends(loss: Tensor, step: int) -> None:
    """Raises TrialError unless the loss of a step depends on a parameter."""
    if not loss.requires_grad:
        raise TrialError("no-grad", f"train: the loss of step {step} depends on no trainable parameter")


class Descent:
    """Moves named parameters against their gradients: SGD with momentum by a recipe.

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
        """The momentum of each parameter; none before the first step, and where the recipe has none."""
        state = self._optimizer.state
        return {n: state[p][MOMENTUM] for n, p in self._parameters.items() if state.get(p)}

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

    def step(self) -> None:
        """Clips the gradients as the recipe says and moves all parameters that have one."""
        if self._recipe.clip:
            nn.utils.clip_grad_norm_(self._parameters.values(), self._recipe.clip)
        state = self._optimizer.state
        if self._recipe.momentum and not state:  # a fused step takes the momenta of all parameters or of none
            for parameter in self._parameters.values():
                state[parameter][MOMENTUM] = torch.zeros_like(parameter)
        self._optimizer.step()

    def direction(self, gradients: Sequence[Tensor], weight_decay: float) -> Sequence[Tensor]:
        """Turns gradients in place into what a step would subtract per unit of learning rate.

        gradients: one for each parameter, unclipped. Momentum is included, Nesterov's look-ahead is not.
        """
        # All in one call: a supernet has thousands, each a launch of its own.
        values = [parameter.detach() for parameter in self._parameters.values()]
        torch._foreach_add_([*gradients], values, alpha=weight_decay)
        if momenta := [*self.momentum.values()]:
            torch._foreach_add_([*gradients], momenta, alpha=self._recipe.momentum)
        return gradients

    def restore(self, momentum: Mapping[str, Tensor]) -> None:
        """Takes over a momentum as it is."""
        self._optimizer.state.clear()
        for name, slot in momentum.items():
            parameter = self._parameters[name]
            self._optimizer.state[parameter][MOMENTUM] = torch.empty_like(parameter).copy_(slot)


class Ema:
    """An exponential moving average of a network's parameters and buffers.

    `average ← d·average + (1 - d)·value` with `d = min(decay, (1 + step) / (10 + step))`, the warm-up of
    TensorFlow's ExponentialMovingAverage: without it a short training would average in its random start.
    Integer buffers are copied.
    """

    def __init__(self, network: nn.Module, decay: float, device: torch.device) -> None:
        self.decay = decay
        self.state = copied(network.state_dict())
        # On the device: in a CUDA graph a number would stay what it was.
        self._share = torch.zeros((), device=device)

    def follow(self, step: int) -> None:
        """Sets how much of the weights counts after step `step`, counted from 0."""
        self._share.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    def update(self, network: nn.Module) -> None:
        """Takes in the weights as they are."""
        now = network.state_dict()
        real = [name for name, value in now.items() if value.is_floating_point()]
        averages = [self.state[name] for name in real]
        away = torch._foreach_sub([now[name] for name in real], averages)
        torch._foreach_mul_([*away], self._share)
        torch._foreach_add_(averages, [*away])
        if whole := [name for name, value in now.items() if not value.is_floating_point()]:
            torch._foreach_copy_([self.state[name] for name in whole], [now[name] for name in whole])

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
