"""The gradient that the alphas follow: of the validation loss, by the method's order, and of regularisers.

Liu et al., ICLR 2019 (DARTS), equation 7; its second term is left out at first order. Deviation: the passes
of the second order leave batch-norm's running statistics as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from nas.devices import exact
from nas.oneshot.bilevel_passes import Passes
from nas.oneshot.freezing import Freezer
from nas.oneshot.gradients import gradients
from nas.oneshot.keeping import kept, without_gradients
from nas.oneshot.method import Method
from nas.oneshot.regularizers import Regularizer


def alpha_gradient(passes: Passes, method: Method, freezer: Freezer | None = None) -> list[Tensor]:
    """The gradient of the coming step's alphas, and betas where there are any.

    That of the loss is with respect to them, or to the mixture weights where those are what moves; that of
    the regularisers always to the alphas.

    freezer: is told the gradients of the operations' weights.
    """
    with _targets(passes, method) as targets:
        if method.order == 2:
            found = _second_order(passes, targets)
        elif freezer is None:
            found = _first_order(passes, targets)
        else:
            found = _first_order_watched(passes, targets, freezer)
    if not method.regularizers:
        return found
    added = gradients(penalty(passes, method.regularizers), passes.supernet.architecture())
    return [gradient + more for gradient, more in zip(found, added, strict=True)]


def penalty(passes: Passes, regularizers: Sequence[Regularizer]) -> Tensor:
    """The regularisers at the coming step's alphas and mixture."""
    alphas, mixed = passes.supernet.logits(), list[Tensor]()
    if any(regularizer.reads_mixture for regularizer in regularizers):
        mixed = passes.penalised()
    terms = [regularizer(alphas, mixed, passes.progress) for regularizer in regularizers]
    return torch.stack(terms).sum()


def _targets(passes: Passes, method: Method) -> AbstractContextManager[Sequence[Tensor]]:
    """What the alphas' gradient is taken of: themselves, or the points of the simplex they stand for."""
    return passes.under_points() if method.update.on_simplex else nullcontext(passes.supernet.architecture())


def _first_order(passes: Passes, targets: Sequence[Tensor]) -> list[Tensor]:
    """`∇α L_val(w, α)`."""
    with without_gradients(passes.loop.parameters.values()):
        return _averaged(passes, passes.validation_loss(), targets, passes.validation.size)


def _first_order_watched(passes: Passes, targets: Sequence[Tensor], freezer: Freezer) -> list[Tensor]:
    """The same, and in the same pass what the validation loss wants of the operations' weights."""
    loss = passes.validation_loss()
    found = _averaged(passes, loss, [*targets, *freezer.weights], passes.validation.size)
    freezer.note(found[len(targets) :])
    return found[: len(targets)]


def _second_order(passes: Passes, targets: Sequence[Tensor]) -> list[Tensor]:
    """Equations 7 and 8: the gradient at the unrolled weights w', less ξ times a Hessian-vector product.

    w' = w - ξ (momentum buffer + ∇w L_train + weight decay), with ξ the current learning rate, as in the
    released code; the product is a central difference of ∇α L_train at w ± ε ∇w' L_val, with
    ε = 0.01 / ‖∇w' L_val‖ (footnote 2). Four passes one after the other: at no time are there more
    activations than at first order; beside them two copies of the weights. The last two are in float32
    whatever the recipe says, since their difference is smaller than what bfloat16 rounds off.
    """
    loop, buffers = passes.loop, passes.supernet.network.buffers()
    weights: list[Tensor] = list(loop.parameters.values())
    rate = loop.rate
    if passes.drawn is None:  # asked for outside of a step
        loop.set_rates()
        loop.begin()
    with loop.one_batch(), kept(buffers), kept(weights) as back:
        trained = _averaged(passes, passes.training_loss("unrolled"), weights, loop.batch)
        step = loop.descent(trained)
        with torch.no_grad():
            if isinstance(rate, Tensor):
                torch._foreach_mul_([*step], rate)
            torch._foreach_sub_(weights, [*step], alpha=1.0 if isinstance(rate, Tensor) else rate)
        del step, trained
        found = _averaged(passes, passes.validation_loss(), [*targets, *weights], passes.validation.size)
        direct, vector = found[: len(targets)], found[len(targets) :]
        epsilon = 0.01 / nn.utils.get_total_norm(vector).clamp_min(1e-12)
        torch._foreach_mul_(vector, epsilon)
        sides = []
        for side, place in ((1, "up"), (-1, "down")):
            back()
            with torch.no_grad():
                torch._foreach_add_(weights, vector, alpha=side)
            with exact(), without_gradients(loop.parameters.values()):
                loss = passes.training_loss(place, "float32")
                sides.append(_averaged(passes, loss, targets, loop.batch))
    product = [(up - down) / (2 * epsilon) for up, down in zip(*sides, strict=True)]
    return [d - rate * p for d, p in zip(direct, product, strict=True)]


def _averaged(passes: Passes, loss: Tensor, inputs: Sequence[Tensor], images: int) -> list[Tensor]:
    """Of a loss that is the mean over a batch of so many images, of which each rank has a part."""
    found = gradients(loss, inputs)
    passes.team.agree(f"search, alphas of step {passes.loop.step}")
    return list(passes.team.average(found, images))
