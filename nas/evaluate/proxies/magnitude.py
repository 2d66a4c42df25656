"""Proxies that need no data: how large a network and its weights are. Only the shape of an image counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.evaluate.proxies.base import layers, proxy, total
from nas.evaluate.proxies.batch import Batch
from nas.space.cost import count_params


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
