"""The Zen-score: how strongly the features of a network with random weights react to its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.evaluate.proxies.base import BatchNorm, layers, logits, proxy
from nas.evaluate.proxies.batch import Batch
from nas.evaluate.proxies.hooks import Watch

_STEP = 1e-2
_FLOOR = 1e-12


@proxy
def zen(network: nn.Module, batch: Batch) -> Tensor:
    """The score log ‖f(x + 0.01 ε) − f(x)‖₁ + Σ_norms log σ of features f before the global pooling.

    Lin et al. 2021 (Zen-NAS), algorithm 1, with σ² the mean variance over the channels that enter
    a batch-norm. Of the batch only the shape counts: weights, x and ε are standard normal, always the same
    draws. As in the paper's code, the norm is the mean over images of the sum of magnitudes. Deviations: one
    repetition, the batch being the average; residual links stay, which the paper removes, since of a network
    of any form nobody can say which they are; σ² is the batch's variance, in the code the running one, which
    has hardly left its start; the features are the last map of more than one pixel, or the logits where there
    is none; log 0 is log 1e-12, so that a network without a path scores low.
    """
    _randomise(network)
    variances: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_pre_hook(lambda _module, inputs: variances.append(_variance(inputs[0])))
    x, noise = torch.randn_like(batch.x), torch.randn_like(batch.x)
    with torch.no_grad():
        features = _features(network, x)
        scales = [variance.sqrt() for variance in variances]
        change = (_features(network, x + _STEP * noise) - features).abs().flatten(1).sum(dim=1).mean()
    return torch.stack([change, *scales]).clamp(min=_FLOOR).log().sum()


def _randomise(network: nn.Module) -> None:
    for layer in layers(network):
        nn.init.normal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _variance(x: Tensor) -> Tensor:
    """The mean over channels of the variance `[]` of `[B, C, ...]`."""
    return x.transpose(0, 1).flatten(1).var(dim=1, correction=0).mean()


def _features(network: nn.Module, x: Tensor) -> Tensor:
    """The last map `[B, C, H, W]` of more than one pixel, else the logits `[B, classes]`."""
    maps: list[Tensor] = []

    def see(_function: object, output: Tensor) -> None:
        if output.ndim == 4 and output.shape[2:].numel() > 1:
            maps[:] = [output]

    with Watch(see):
        scores = logits(network, x)
    return maps[0] if maps else scores
