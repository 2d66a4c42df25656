"""ZiCo: how large and how steady over minibatches the gradients of each layer are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.errors import ConfigError
from nas.evaluate.proxies.base import cross_entropy, gradients, layers, proxy
from nas.evaluate.proxies.batch import Batch

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
