"""The zero-cost proxies, each a function `(network, batch) -> float`, larger is better, with its paper.

Those from gradients of the loss are pruning criteria on the weights of convolutions and linear layers, summed
over the whole network, as in Abdelfattah et al. 2021 (Zero-Cost Proxies for Lightweight NAS), §3; a network
whose output does not depend on the images scores 0 (`fisher`: all but 0, from the classifier's bias). Those
from the binary codes of ReLUs (which units are on for which images) ignore the labels; every ReLU and hard
tanh counts (ReLU6 is one), be it a module or a function, where the published codes see modules.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.errors import ConfigError, TrialError
from nas.evaluate.proxy_base import (
    Batch,
    BatchNorm,
    Layer,
    Watch,
    cross_entropy,
    gradients,
    layers,
    logits,
    proxy,
    total,
)
from nas.space.cost import count_params

# -- from sizes and weights alone ------------------------------------------------------------------------


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


# -- from the gradient of the loss ---------------------------------------------------------------------


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


# -- from activations and from the gradient of the logits for the images --------------------------------

_RELUS = frozenset({F.relu, F.relu6, F.hardtanh, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
_FLOOR = 1e-5  # of an eigenvalue
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
