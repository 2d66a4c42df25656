"""Proxies from how differently a network reacts to different images: correlations of its input gradients.

Both need about 64 images, those of `epe` several of each class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.evaluate.proxies.base import gradients, logits, proxy
from nas.evaluate.proxies.batch import Batch

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
