"""Proxies from the binary codes of ReLUs: which units are on for which images. They ignore the labels.

Every ReLU and hard tanh counts (ReLU6 is one), be it a module or a function; the published codes see modules.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.errors import TrialError
from nas.evaluate.proxies.base import Batch, BatchNorm, Watch, gradients, layers, logits, proxy

_RELUS = frozenset({F.relu, F.relu6, F.hardtanh, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
_FLOOR = 1e-5
_WORD = 8


@proxy
def nwot(network: nn.Module, batch: Batch) -> Tensor:
    """The score log |K| of K_ij, the number of units that agree on images i and j; about 64 images.

    Mellor et al. 2021 (NAS without training), eq. 2. Deviation: eigenvalues under 1e-5 count as 1e-5, so
    that a network with the same code for several images scores low, and not −∞.
    """
    codes = _codes(network, batch)
    agreements = torch.stack([_agreements(code) for code in codes]).sum(dim=0)
    spectrum: Tensor = torch.linalg.eigvalsh(agreements)
    return spectrum.clamp(min=_FLOOR).log().sum()


@proxy
def swap(network: nn.Module, batch: Batch) -> Tensor:
    """The number of different patterns `[B]` that units show over the batch; 16 to 64 images.

    Peng et al. 2024 (SWAP-NAS), the definition of SWAP-Score. Deviation: without the factor that regularises
    for size, whose two settings differ for each space.
    """
    return torch.tensor(_distinct([code.cpu().numpy() for code in _codes(network, batch)]))


def _agreements(code: Tensor) -> Tensor:
    """For each pair of images `[B, B]`, how many of the units `[B, units]` are equal."""
    signs = 2 * code.float() - 1
    return (code.shape[1] + (signs @ signs.T).double()) / 2


def _codes(network: nn.Module, batch: Batch) -> list[Tensor]:
    """Which units of each ReLU are on, `[B, units]` bool."""
    codes: list[Tensor] = []

    def see(function: object, output: Tensor) -> None:
        if function in _RELUS:
            codes.append((output > 0).flatten(1))

    with torch.no_grad(), Watch(see):
        logits(network, batch.x)
    if not codes:
        raise TrialError("metric", "the network runs no ReLU, whose codes are compared; use another proxy")
    return codes


def _distinct(codes: Sequence[NDArray[np.bool_]]) -> int:
    """The number of different columns of boolean arrays `[B, units]` side by side."""
    packed = np.concatenate([np.packbits(code, axis=0) for code in codes], axis=1)
    padded = np.pad(packed, ((0, -len(packed) % _WORD), (0, 0)))
    words = np.ascontiguousarray(padded.T).view(np.uint64).T
    ordered = words[:, np.lexsort(words)]
    return 1 + int((ordered[:, 1:] != ordered[:, :-1]).any(axis=0).sum())


_K = 1e-5  # keeps the logarithms finite; the constant of both papers' codes
_FEW_CLASSES = 100


@proxy
def jacov(network: nn.Module, batch: Batch) -> Tensor:
    """The score −Σ_i [log(σ_i + k) + 1 / (σ_i + k)] of the eigenvalues σ of the images' correlations.

    Mellor et al. 2020 (NAS without training), the score of the first version, arXiv 2006.04647v1. A network
    that reacts to all images alike scores lowest, near −(B − 1) / k.
    """
    jacobian, _ = _jacobian(network, batch)
    spectrum: Tensor = torch.linalg.eigvalsh(_correlations(jacobian))
    shifted = spectrum.clamp(min=0) + _K
    return -(shifted.log() + 1 / shifted).sum()


@proxy
def epe(network: nn.Module, batch: Batch) -> Tensor:
    """The score of EPE-NAS: correlations within each class, E_c = Σ_ij log(|ρ_ij| + k).

    Lopes et al. 2021 (EPE-NAS), §3: Σ_c |E_c| for at most 100 classes; for more, E_c is divided by the
    images of the class, and the score is Σ_cd |E_c − E_d| over the number of classes present. A network that
    reacts to all images alike scores 0.
    """
    jacobian, classes = _jacobian(network, batch)
    members = [jacobian[batch.y == label] for label in batch.y.bincount().nonzero()]
    logs = [(_correlations(rows).abs() + _K).log() for rows in members]
    if classes <= _FEW_CLASSES:
        return torch.stack([log.sum().abs() for log in logs]).sum()
    means = torch.stack([log.sum() / len(log) for log in logs])
    return (means[:, None] - means).abs().sum() / len(means)


def _jacobian(network: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """The gradient `[B, C * H * W]` of the sum of an image's logits for its pixels, and how many classes."""
    x = batch.x.requires_grad_()
    # A clone, for a network may begin in place.
    scores = logits(network, x.clone())
    (jacobian,) = gradients(scores.sum(), [x])
    return jacobian.flatten(1).double(), scores.shape[1]


def _correlations(rows: Tensor) -> Tensor:
    """Pearson correlations `[B, B]` of rows `[B, N]`; a constant row correlates fully with every other."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    norms = centred.norm(dim=1)
    flat = norms == 0
    unit = centred / torch.where(flat, 1.0, norms)[:, None]
    return torch.where(flat[:, None] | flat, 1.0, unit @ unit.T)


_STEP = 1e-2
_SMALLEST = 1e-12


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
    return torch.stack([change, *scales]).clamp(min=_SMALLEST).log().sum()


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
