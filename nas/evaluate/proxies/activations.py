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
from nas.evaluate.proxies.base import logits, proxy
from nas.evaluate.proxies.batch import Batch
from nas.evaluate.proxies.hooks import Watch

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
