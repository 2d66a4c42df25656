"""The bilevel search of DARTS (Liu et al., ICLR 2019): alphas by validation loss, weights by training loss.

Algorithm 1 of the paper: each step first moves the alphas along equation 7, whose second term is left out at
first order, and then the weights along the training loss. The alphas' batch comes from the validation split.

Deviations: the step's random numbers come from (seed, step) instead of a loader; the perturbed passes of the
second order leave batch-norm's running statistics as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.loop import Batches, Loop, policy_of, precision, to_layout
from nas.oneshot.supernet import Supernet
from nas.recipe import Recipe
from nas.seeding import derive
from nas.task import Task

# Liu et al. 2019, §3.1.1 and the released code: 50 epochs, batch 64, plain momentum, cosine per epoch.
PUBLISHED = Recipe(
    epochs=50,
    batch=64,
    lr=0.025,
    lr_min=0.001,
    weight_decay=3e-4,
    nesterov=False,
    schedule="epoch",
    clip=5.0,
)


@dataclass(frozen=True)
class Bilevel:
    """Settings of the search; the defaults are the paper's.

    weights: recipe of the shared weights, whose epochs are the search's.
    order: 1 takes the weights as they are in the alphas' gradient, 2 unrolls one step of theirs.
    alpha_lr, alpha_betas, alpha_weight_decay: of the alphas' Adam.
    """

    weights: Recipe = PUBLISHED
    order: Literal[1, 2] = 1
    alpha_lr: float = 3e-4
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    alpha_weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ConfigError(f"darts: order is {self.order!r}, but must be 1 or 2")
        if not (0 < self.alpha_lr < float("inf") and 0 <= self.alpha_weight_decay < float("inf")):
            raise ConfigError(
                f"darts: alpha_lr is {self.alpha_lr} and alpha_weight_decay {self.alpha_weight_decay}; "
                "wanted finite numbers, the first above 0, the second at least 0"
            )


class BilevelLoop:
    """A search that can be advanced one step at a time, and saved and restored between any two steps."""

    def __init__(self, supernet: Supernet, task: Task, settings: Bilevel, *, seed: int) -> None:
        self.supernet, self.task, self.settings, self.seed = supernet, task, settings, seed
        self.alphas = list(supernet.alphas)
        self.loop = Loop(
            supernet.network,
            task,
            settings.weights,
            seed=seed,
            split=task.train,
            forward=lambda _, x, __: supernet(x),
        )
        policy, size = policy_of(settings.weights, task), settings.weights.batch
        self._validation = Batches(task.val, task, policy, size=size, seed=derive(seed, "validation"))
        self._adam = torch.optim.Adam(
            self.alphas,
            lr=settings.alpha_lr,
            betas=settings.alpha_betas,
            weight_decay=settings.alpha_weight_decay,
        )

    def advance(self) -> None:
        """Moves the alphas, then the weights."""
        for alpha, gradient in zip(self.alphas, self.alpha_gradient(), strict=True):
            alpha.grad = gradient
        self._adam.step()
        self._adam.zero_grad()
        with _frozen(self.alphas):
            self.loop.advance()

    def alpha_gradient(self) -> list[Tensor]:
        """The gradient of the validation loss with respect to the alphas, by the settings' order."""
        if self.settings.order == 1:
            return _gradients(self.validation_loss(), self.alphas)
        return self._second_order()

    def validation_loss(self) -> Tensor:
        """Cross-entropy of the coming step's validation batch under alphas and weights as they are."""
        torch.manual_seed(derive(self.seed, "alpha step", self.loop.step))
        x, y, _ = self._validation.at(self.loop.step)
        with precision(x.device):
            logits = self.supernet(to_layout(x))
        return F.cross_entropy(logits.float(), y)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the settings and the step."""
        return {
            "loop": self.loop.state(),
            "alphas": [alpha.detach() for alpha in self.alphas],
            "adam": self._adam.state_dict(),
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was taken, after `step` steps."""
        self.loop.restore(step, state["loop"])
        with torch.no_grad():
            for alpha, saved in zip(self.alphas, state["alphas"], strict=True):
                alpha.copy_(saved)
        self._adam.load_state_dict(dict(state["adam"]))

    def _second_order(self) -> list[Tensor]:
        """Equations 7 and 8: the gradient at the unrolled weights w', less ξ times a Hessian-vector product.

        w' = w - ξ (momentum buffer + ∇w L_train + weight decay), with ξ the current learning rate, as in the
        released code; the product is a central difference of ∇α L_train at w ± ε ∇w' L_val.
        """
        weights = list(self.loop.parameters.values())
        rate = self.loop.next_lr
        with _kept(self.supernet.network):
            train_gradient = _gradients(self.loop.loss(), weights)
            with torch.no_grad():
                for w, step in zip(weights, self.loop.descent(train_gradient), strict=True):
                    w.sub_(step, alpha=rate)
            loss = self.validation_loss()
            direct, vector = _split(_gradients(loss, [*self.alphas, *weights]), len(self.alphas))
        with _kept(self.supernet.network):
            product = self._hessian_vector(weights, vector)
        return [d - rate * p for d, p in zip(direct, product, strict=True)]

    def _hessian_vector(self, weights: Sequence[nn.Parameter], vector: Sequence[Tensor]) -> list[Tensor]:
        """Equation 8, with ε = 0.01 / ‖vector‖ (footnote 2)."""
        epsilon = 0.01 / nn.utils.get_total_norm(vector).clamp_min(1e-12)
        steps = [epsilon * v for v in vector]
        sides = []
        with torch.no_grad():
            torch._foreach_add_(list(weights), steps)
        sides.append(_gradients(self.loop.loss(), self.alphas))
        with torch.no_grad():
            torch._foreach_sub_(list(weights), [2 * step for step in steps])
        sides.append(_gradients(self.loop.loss(), self.alphas))
        return [(up - down) / (2 * epsilon) for up, down in zip(*sides, strict=True)]


def _gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of `loss`, zero for what it does not depend on."""
    found: Sequence[Tensor | None] = torch.autograd.grad(loss, list(inputs), allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def _split(tensors: Sequence[Tensor], at: int) -> tuple[list[Tensor], list[Tensor]]:
    return list(tensors[:at]), list(tensors[at:])


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Runs a block in which no gradients of the parameters are computed."""
    for parameter in parameters:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad = True


@contextmanager
def _kept(network: nn.Module) -> Iterator[None]:
    """Runs a block, then puts weights and buffers back as they were."""
    tensors = [t.detach() for t in (*network.parameters(), *network.buffers())]
    saved = [t.clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
