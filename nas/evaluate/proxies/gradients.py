"""Proxies from the gradient of the loss on one batch: pruning criteria summed over the whole network.

All follow Abdelfattah et al. 2021 (Zero-Cost Proxies for Lightweight NAS), §3, on the weights of
convolutions and linear layers. A network whose output does not depend on the images scores 0 (`fisher`: all
but 0, from the classifier's bias).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.errors import ConfigError
from nas.evaluate.proxies.base import (
    Batch,
    BatchNorm,
    Layer,
    cross_entropy,
    gradients,
    layers,
    logits,
    proxy,
    total,
)
from nas.space.cost import count_params


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


def params(network: nn.Module, batch: Batch) -> float:  # noqa: ARG001 - one signature for all
    """The number of trainable parameters, auxiliary heads included; uses no image."""
    return float(count_params(network))


@proxy
def macs(network: nn.Module, batch: Batch) -> Tensor:
    """The multiply-accumulates of convolutions and linear layers for one image; uses its shape alone."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(batch.x[:1])
    return torch.tensor(counter.get_total_flops() // 2)


@proxy
def l2_norm(network: nn.Module, batch: Batch) -> Tensor:  # noqa: ARG001 - one signature for all
    """The sum over layers of the Euclidean norm of the weights; uses no image.

    Abdelfattah et al. 2021 (zero-cost NAS), as in their code; biases and batch-norms do not count. As torch
    initialises it, a convolution to C channels has a norm near sqrt(C / 3), whatever its kernel: networks
    with as many layers of each width differ by the luck of their weights alone.
    """
    return total(layer.weight.norm() for layer in layers(network))


@proxy
def synflow(network: nn.Module, batch: Batch) -> Tensor:
    """The sum over weights of |θ| ∂R/∂|θ|, where R sums the logits of an image of ones under |θ|.

    Tanaka et al. 2020 (SynFlow) as in Abdelfattah et al. 2021, eq. 1, over convolutions and linear layers,
    biases flowing along. Batch-norms pass their input on. In float64, as values reach 1e60.
    """
    weights, flows = _flows(network, batch)
    return total(weight * flow for weight, flow in zip(weights, flows, strict=True))


@proxy
def logsynflow(network: nn.Module, batch: Batch) -> Tensor:
    """The sum over weights of |θ| log(1 + ∂R/∂|θ|), with R as in `synflow`.

    Cavagnero et al. 2023 (FreeREA), the definition of LogSynflow: the logarithm tames the gradients, which
    grow exponentially with depth.
    """
    weights, flows = _flows(network, batch)
    return total(weight * flow.log1p() for weight, flow in zip(weights, flows, strict=True))


def _flows(network: nn.Module, batch: Batch) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """The magnitudes of all weights and ∂R for each."""
    network = _linearised(network)
    weights: list[Tensor] = [layer.weight for layer in layers(network)]
    ones = torch.ones_like(batch.x[:1], dtype=torch.float64)
    return weights, gradients(logits(network, ones).sum(), weights)


def _linearised(network: nn.Module) -> nn.Module:
    network = network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_hook(lambda _module, inputs, _output: inputs[0])
    return network


_LEAST = 4  # two images for each half, since one alone has no batch statistics


@proxy
def zico(network: nn.Module, batch: Batch) -> Tensor:
    """The score Σ_layers log Σ_weights E|g| / std(g) over minibatches; about 2 x 64 labelled images.

    Li et al. 2023 (ZiCo), the definition of ZiCo, on the two halves of the batch. As in their code, the
    deviation is that of g and not of |g|, a weight whose gradient is the same in both adds nothing, and
    neither does a layer of such weights; a network whose output does not depend on the images scores 0.
    Deviation from the code: each minibatch has a gradient of its own, as in the paper; there that of the
    second is added to that of the first.
    """
    if len(batch) < _LEAST:
        raise ConfigError(
            f"proxy 'zico' got {len(batch)} images, wanted at least {_LEAST}: it compares two minibatches"
        )
    weights = [layer.weight for layer in layers(network)]
    middle = len(batch) // 2
    halves = (Batch(batch.x[:middle], batch.y[:middle]), Batch(batch.x[middle:], batch.y[middle:]))
    first, second = (gradients(cross_entropy(network, half), weights) for half in halves)
    steadiness = [_steadiness(torch.stack(pair)) for pair in zip(first, second, strict=True)]
    return torch.stack([torch.where(value > 0, value.log(), 0.0) for value in steadiness]).sum()


def _steadiness(grads: Tensor) -> Tensor:
    """The sum `[]` of E|g| / std(g) for gradients `[minibatches, ...]`."""
    mean, std = grads.abs().mean(dim=0), grads.std(dim=0, correction=0)
    return torch.where(std > 0, mean / std, 0.0).sum()
