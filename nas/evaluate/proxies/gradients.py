"""Proxies from the gradient of the loss on one batch: pruning criteria summed over the whole network.

All follow Abdelfattah et al. 2021 (Zero-Cost Proxies for Lightweight NAS), §3, on the weights of
convolutions and linear layers. A network whose output does not depend on the images scores 0 (`fisher`: all
but 0, from the classifier's bias).
"""

from __future__ import annotations

from torch import Tensor, nn

from nas.evaluate.proxies.base import Layer, cross_entropy, gradients, layers, proxy, total
from nas.evaluate.proxies.batch import Batch


@proxy
def grad_norm(network: nn.Module, batch: Batch) -> Tensor:
    """The sum over layers of the Euclidean norm of the gradient, ‖∂L/∂θ‖; any labelled batch.

    Abdelfattah et al. 2021, §3.1.
    """
    _, grads = _weights_and_gradients(network, batch)
    return total(grad.norm() for grad in grads)


@proxy
def snip(network: nn.Module, batch: Batch) -> Tensor:
    """The sum over weights of |∂L/∂θ ⊙ θ|; any labelled batch.

    Lee et al. 2019 (SNIP) as in Abdelfattah et al. 2021, eq. 1: without the normalisation over the network.
    """
    weights, grads = _weights_and_gradients(network, batch)
    return total((weight * grad).abs() for weight, grad in zip(weights, grads, strict=True))


@proxy
def plain(network: nn.Module, batch: Batch) -> Tensor:
    """The sum over weights of −∂L/∂θ ⊙ θ; any labelled batch.

    Mozer & Smolensky 1988 (skeletonization): to first order, the loss that removing all weights would add.
    Abdelfattah et al. 2021 sum ∂L/∂θ ⊙ θ; the sign is turned, because in published values that sum falls
    with accuracy. A weight before a batch-norm adds nothing, as the loss does not depend on its scale.
    """
    weights, grads = _weights_and_gradients(network, batch)
    return -total(weight * grad for weight, grad in zip(weights, grads, strict=True))


@proxy
def grasp(network: nn.Module, batch: Batch) -> Tensor:
    """The sum over weights of −(H ∂L/∂θ) ⊙ θ with the Hessian H; any labelled batch.

    Wang et al. 2020 (GraSP) as in Abdelfattah et al. 2021, eq. 1, in whose sign larger is better. Deviations
    from GraSP: temperature 1, and both gradients are of the same batch.
    """
    weights = [layer.weight for layer in layers(network)]
    grads = gradients(cross_entropy(network, batch), weights, create_graph=True)
    product = total(grad.detach() * grad for grad in grads)
    return -total(w * hg for w, hg in zip(weights, gradients(product, weights), strict=True))


@proxy
def fisher(network: nn.Module, batch: Batch) -> Tensor:
    """The sum over channels of half the mean square over images of Σ_pixels ∂L/∂a ⊙ a; any labelled batch.

    Turner et al. 2020 (BlockSwap) as in Abdelfattah et al. 2021, eq. 2, and their code: a is the output of
    each convolution and linear layer, L the mean loss.
    """
    seen: list[tuple[Layer, Tensor]] = []

    def keep(layer: Layer, _inputs: object, output: Tensor) -> Tensor:
        seen.append((layer, output))
        # What follows gets a clone, for it may work in place.
        return output.clone()

    for layer in layers(network):
        layer.register_forward_hook(keep)
    grads = gradients(cross_entropy(network, batch), [output for _, output in seen])
    saliencies = (_by_channel(layer, a * g) for (layer, a), g in zip(seen, grads, strict=True))
    return total(saliency.square().mean(dim=0) / 2 for saliency in saliencies)


def _weights_and_gradients(network: nn.Module, batch: Batch) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    weights: list[Tensor] = [layer.weight for layer in layers(network)]
    return weights, gradients(cross_entropy(network, batch), weights)


def _by_channel(layer: Layer, values: Tensor) -> Tensor:
    """The sum `[B, C]` over the pixels, or the tokens, of a layer's output."""
    values = values.movedim(-1 if isinstance(layer, nn.Linear) else 1, 1)
    return values.reshape(*values.shape[:2], -1).sum(dim=2)
