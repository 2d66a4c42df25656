"""Proxies from the flow of synapses: products of the magnitudes of the weights along every path.

They need no data, only the shape of an image. A network without a path from input to output scores 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.evaluate.proxies.base import BatchNorm, gradients, layers, logits, proxy, total
from nas.evaluate.proxies.batch import Batch


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
