"""The descent of a training: SGD with momentum by a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nas.training.masked_update import MOMENTUM, Resting, begin_momenta
from nas.training.recipe import Recipe

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
