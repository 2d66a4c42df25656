"""One step of a differentiable search: Algorithm 1 of DARTS (Liu et al., ICLR 2019).

The alphas α first move along the gradient of the validation loss, then the weights w along that of the
training loss. Deviation: the random numbers of a step come from (seed, step) instead of a loader, so that a
step can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.devices import exact
from nas.oneshot.methods import Method
from nas.oneshot.oles import Freezer
from nas.oneshot.supernet import Mixtures, Supernet, preserving, without_gradients
from nas.training.evaluate import Batch
from nas.training.loop import Batches, Loop
from nas.training.optimizer import check_depends, gradients
from nas.training.recipe import Precision


class Bilevel(Protocol):
    """What a step reads and moves of a search: w by `loop`, α by `alpha_optimizer`.

    A loss is a scalar under the mixture of the alphas or under given mixture weights, and the same however
    often a step asks for it.
    """

    supernet: Supernet
    method: Method
    loop: Loop
    validation: Batches
    alpha_optimizer: Optimizer
    freezer: Freezer | None

    def validation_loss(self, val: Batch, mixture: Mixtures | None = None) -> Tensor:
        """`L_val(w, α)`."""

    def training_loss(
        self, train: Batch, mixture: Mixtures | None = None, arithmetic: Precision | None = None
    ) -> Tensor:
        """`L_train(w, α)`."""

    def penalty(self) -> Tensor:
        """What the regularisers add to the loss of α."""

    def perturbed_mixture(self, train: Batch) -> Mixtures:
        """What w is trained under instead of the mixture of the alphas (SDARTS)."""


def darts_step(search: Bilevel, train: Batch, val: Batch | None) -> None:
    """Moves the alphas by a validation batch, unless that is None, then the weights by a training batch."""
    alphas, loop, freezer = search.supernet.architecture(), search.loop, search.freezer
    if val is not None:
        for alpha, gradient in zip(alphas, alpha_gradient(search, train, val), strict=True):
            alpha.grad = gradient
        search.alpha_optimizer.step()

    with without_gradients(alphas):
        mixture = None if search.method.perturbation is None else search.perturbed_mixture(train)
        loop.descent.clear()
        loss = search.training_loss(train, mixture)
        check_depends(loss, loop.step)
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loop.combined(loss)
        if freezer is not None:
            freezer.hold(compare=val is not None)
        loop.descend(loss)


def alpha_gradient(search: Bilevel, train: Batch, val: Batch) -> list[Tensor]:
    """`∇α L_val(w', α)`, plus that of the regularisers; one tensor for each of `Supernet.architecture`.

    w' are the weights as they are (first order), or one step on (second order, equation 7). Where the rule
    moves the mixture on the simplex (GAEA), the loss's gradient is with respect to the mixture weights.
    """
    supernet, method, freezer = search.supernet, search.method, search.freezer
    targets: Sequence[Tensor] = supernet.architecture()
    mixture: Mixtures | None = None
    if method.update.on_simplex:
        targets = mixture = [weights.detach().requires_grad_() for weights in supernet.mixture_weights()]
    if method.order == 2:
        found = second_order(search, train, val, targets, mixture)
    else:
        watched = [] if freezer is None else freezer.weights
        with without_gradients([] if watched else search.loop.parameters.values()):
            loss = search.validation_loss(val, mixture)
            own = torch.autograd.grad(loss, [*targets, *watched], allow_unused=True, materialize_grads=True)
        found = search.loop.average(list(own), search.validation.size)
        if freezer is not None:
            freezer.validation = found[len(targets) :]
    gradient = found[: len(targets)]
    if method.regularizers:
        added = gradients(search.penalty(), supernet.architecture())
        gradient = [g + more for g, more in zip(gradient, added, strict=True)]
    return gradient


def second_order(
    search: Bilevel, train: Batch, val: Batch, targets: Sequence[Tensor], mixture: Mixtures | None
) -> list[Tensor]:
    """`∇α L_val(w', α) - ξ (∇α L_train(w⁺, α) - ∇α L_train(w⁻, α)) / 2ε`: equations 7 and 8.

    w' = w - ξ (momentum buffer + ∇w L_train + weight decay), with ξ the current learning rate, as in the
    released code; w± = w ± ε ∇w' L_val with ε = 0.01 / ‖∇w' L_val‖ (footnote 2). The last two passes are in
    float32 whatever the recipe says, since their difference is smaller than what bfloat16 rounds off.
    Deviation: batch-norm's running statistics stay as they were.
    """
    loop, rate = search.loop, search.loop.descent.rate
    weights: list[Tensor] = list(loop.parameters.values())
    with preserving(search.supernet.network.buffers()), preserving(weights) as back:
        moves = loop.average(gradients(search.training_loss(train, mixture), weights), loop.batch)
        loop.descent.direction(moves, loop.weight_decay)
        with torch.no_grad():
            torch._foreach_mul_(moves, rate)
            torch._foreach_sub_(weights, moves)
        del moves
        found = gradients(search.validation_loss(val, mixture), [*targets, *weights])
        found = loop.average(found, search.validation.size)
        direct, vector = found[: len(targets)], found[len(targets) :]
        epsilon = 0.01 / nn.utils.get_total_norm(vector).clamp_min(1e-12)
        torch._foreach_mul_(vector, epsilon)
        sides = []
        for side in (1, -1):
            back()
            with torch.no_grad():
                torch._foreach_add_(weights, vector, alpha=side)
            with exact(), without_gradients(loop.parameters.values()):
                found = gradients(search.training_loss(train, mixture, "float32"), targets)
            sides.append(loop.average(found, loop.batch))
    product = [(up - down) / (2 * epsilon) for up, down in zip(*sides, strict=True)]
    return [d - rate * p for d, p in zip(direct, product, strict=True)]
