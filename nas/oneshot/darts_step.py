"""One step of a differentiable search: Algorithm 1 of DARTS (Liu et al., ICLR 2019).

The alphas α first move along the gradient of the validation loss, then the weights w along that of the
training loss. Deviation: the random numbers of a step come from (seed, step) instead of a loader, so that a
step can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.devices import exact
from nas.oneshot.bilevel import Bilevel
from nas.oneshot.supernet import kept, without_gradients
from nas.seeding import derive, reseed
from nas.training.cuda_graph import GraphedStep
from nas.training.evaluate import Batch
from nas.training.loop import Loop
from nas.training.optimizer import check_depends, gradients
from nas.training.recipe import Precision, precision

Points = Sequence[Tensor]
"""Mixture weights `[E, O]` as in `Supernet.points`."""


def darts_step(state: Bilevel, train: Batch, val: Batch | None) -> None:
    """Moves the alphas by a validation batch, unless that is None, then the weights by a training batch."""
    supernet, loop, freezer = state.supernet, state.loop, state.freezer
    if val is not None:
        state.alpha_optimizer.step(alpha_gradient(state, train, val))
    with without_gradients(supernet.architecture()):
        points = perturbed(state, train)

        def weight_gradient(_: Loop, batch: Batch) -> Tensor:
            loss = training_loss(state, batch, points)
            check_depends(loss, loop.step)
            loss.backward()  # type: ignore[no-untyped-call]
            if freezer is not None:
                if val is not None:
                    freezer.watch()
                freezer.hold()
            return loop.combined(loss)

        loop.learn(train, weight_gradient)


def alpha_gradient(state: Bilevel, train: Batch, val: Batch) -> list[Tensor]:
    """`∇α L_val(w', α)`, plus that of the regularisers; one tensor for each of `Supernet.architecture`.

    w' are the weights as they are (first order), or one step on (second order, equation 7). Where the rule
    moves points of the simplex (GAEA), the loss's gradient is with respect to these.
    """
    method, supernet = state.method, state.supernet
    alphas, points = supernet.architecture(), None
    if method.update.on_simplex:
        points = [point.detach().requires_grad_() for point in supernet.points()]
    order = second_order if method.order == 2 else first_order
    found = order(state, train, val, points or alphas, points)
    if not method.regularizers:
        return found
    added = gradients(penalty(state), alphas)
    return [gradient + more for gradient, more in zip(found, added, strict=True)]


def first_order(
    state: Bilevel, _: Batch, val: Batch, targets: Sequence[Tensor], points: Points | None
) -> list[Tensor]:
    """`∇α L_val(w, α)`; a freezer is told what the loss wants of the operations' weights, too."""
    if state.freezer is None:
        with without_gradients(state.loop.parameters.values()):
            return _mean(state, validation_loss(state, val, points), targets, state.validation.size)
    wanted = [*targets, *state.freezer.weights]
    found = _mean(state, validation_loss(state, val, points), wanted, state.validation.size)
    state.freezer.note(found[len(targets) :])
    return found[: len(targets)]


def second_order(
    state: Bilevel, train: Batch, val: Batch, targets: Sequence[Tensor], points: Points | None
) -> list[Tensor]:
    """`∇α L_val(w', α) - ξ (∇α L_train(w⁺, α) - ∇α L_train(w⁻, α)) / 2ε`: equations 7 and 8.

    w' = w - ξ (momentum buffer + ∇w L_train + weight decay), with ξ the current learning rate, as in the
    released code; w± = w ± ε ∇w' L_val with ε = 0.01 / ‖∇w' L_val‖ (footnote 2). The last two passes are in
    float32 whatever the recipe says, since their difference is smaller than what bfloat16 rounds off.
    Deviation: batch-norm's running statistics stay as they were.
    """
    loop, rate = state.loop, state.loop.descent.rate
    weights: list[Tensor] = list(loop.parameters.values())
    with kept(state.supernet.network.buffers()), kept(weights) as back:
        moves = _mean(state, training_loss(state, train, points), weights, loop.batch)
        loop.descent.direction(moves, loop.weight_decay)
        with torch.no_grad():
            torch._foreach_mul_(moves, rate)
            torch._foreach_sub_(weights, moves)
        del moves
        loss = validation_loss(state, val, points)
        found = _mean(state, loss, [*targets, *weights], state.validation.size)
        direct, vector = found[: len(targets)], found[len(targets) :]
        epsilon = 0.01 / nn.utils.get_total_norm(vector).clamp_min(1e-12)
        torch._foreach_mul_(vector, epsilon)
        sides = []
        for side in (1, -1):
            back()
            with torch.no_grad():
                torch._foreach_add_(weights, vector, alpha=side)
            with exact(), without_gradients(loop.parameters.values()):
                loss = training_loss(state, train, points, "float32")
                sides.append(_mean(state, loss, targets, loop.batch))
    product = [(up - down) / (2 * epsilon) for up, down in zip(*sides, strict=True)]
    return [d - rate * p for d, p in zip(direct, product, strict=True)]


def validation_loss(state: Bilevel, val: Batch, points: Points | None = None) -> Tensor:
    """The cross-entropy of the mixture on a validation batch, a scalar. points: instead of the alphas'."""
    x, (y, _) = val
    seed = derive(state.seed, "alpha step", state.loop.step)
    reseed(seed)
    with precision(x.device, state.method.weights.precision):
        logits = _mixed(state, x, points, seed)
    return F.cross_entropy(logits.float(), y)


def training_loss(
    state: Bilevel, train: Batch, points: Points | None = None, wanted: Precision | None = None
) -> Tensor:
    """The recipe's loss of the mixture on a training batch; the same however often a step asks for it."""
    loop = state.loop
    reseed(loop.seed_of_step)
    return loop.loss(train, lambda x: _mixed(state, x, points, loop.seed_of_step), wanted)


def penalty(state: Bilevel) -> Tensor:
    """The regularisers at the coming step's alphas and mixture, a scalar."""
    supernet, mixed = state.supernet, list[Tensor]()
    if any(regularizer.reads_mixture for regularizer in state.method.regularizers):
        reseed(derive(state.seed, "alpha step", state.loop.step))
        mixed = supernet.points()[: len(supernet.alphas)]
    alphas = supernet.logits()
    return torch.stack([r(alphas, mixed, supernet.progress) for r in state.method.regularizers]).sum()


def perturbed(state: Bilevel, train: Batch) -> Points | None:
    """The mixture that the weights are trained under (SDARTS); None for that of the alphas."""
    perturbation, supernet, loop = state.method.perturbation, state.supernet, state.loop
    if perturbation is None:
        return None
    count = len(supernet.alphas)
    reseed(derive(state.seed, "perturbation", loop.step))
    with torch.no_grad():
        points = supernet.points()
    edges = points[count:]

    def loss(candidate: Points) -> Tensor:
        return training_loss(state, train, [*candidate, *edges])

    def mean(candidate: Points) -> Tensor:
        return loop.team.across(candidate, loss, loop.batch)

    with kept(supernet.network.buffers()), without_gradients(loop.parameters.values()):
        return [*perturbation(points[:count], mean, supernet.progress), *edges]


def _mixed(state: Bilevel, x: Tensor, points: Points | None, seed: int) -> Tensor:
    """The logits under a mixture, which all ranks draw alike; what the network draws is a rank's own."""
    supernet = state.supernet
    under = supernet.points() if points is None else points
    mixture = supernet.mixture(under, whole=points is not None)
    state.loop.team.apart(seed)
    return supernet.mix(x, mixture)


def _mean(state: Bilevel, loss: Tensor, inputs: Sequence[Tensor], images: int) -> list[Tensor]:
    """The gradients of a loss, the mean over a batch of so many images, of which each rank has a part."""
    return list(state.loop.team.average(gradients(loss, inputs), images))


def stepping(state: Bilevel) -> Callable[[], None]:
    """What does the coming step whenever it is called: draws the batches, then moves alphas and weights.

    On CUDA steps are replayed as graphs where the recipe allows that and a graph can hold them.
    """
    loop = state.loop

    def step(batches: tuple[Batch, Batch | None]) -> None:
        darts_step(state, *batches)

    graphed: Callable[[tuple[Batch, Batch | None]], None] = step
    if loop.device.type == "cuda" and loop.recipe.graph and loop.team.size == 1:
        graphed = GraphedStep(step, moved=state.moved, reads=lambda: state.read_by_steps)

    def learn(train: Batch) -> None:
        graphed((train, state.validation.at(loop.step) if state.moves_alphas else None))

    return lambda: loop.advance(learn)
