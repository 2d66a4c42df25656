"""Zero-cost proxies: pure functions `(network, batch) -> float` of an untrained network, larger is better.

They are meant for networks as torch initialises them. None is good on every space: on NAS-Bench-201
`synflow` and `nwot` follow accuracy closely, in the space of DARTS hardly at all.

Those from gradients of the loss are pruning criteria on the weights of convolutions and linear layers, summed
over the whole network, as in Abdelfattah et al. 2021 (Zero-Cost Proxies for Lightweight NAS), §3; a network
whose output does not depend on the images scores 0.

Example:
    batch = nas.proxies.draw_batch(nas.load_task("digits"), 64)
    nas.proxies.PROXIES["synflow"](network, batch)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.data.problem import CLASSIFICATION, Problem
from nas.data.task import Task
from nas.errors import ConfigError, TrialError, unknown
from nas.seeding import isolated, rng
from nas.space.cost import Seeing, cost, count_params, tensors
from nas.space.space import Space
from nas.types import Genotype, Trial
from nas.user_code import user_errors


@dataclass(frozen=True, eq=False)
class Batch:
    """Images and their targets, as a network in training sees them.

    x: [B, C, H, W] float32 of about zero mean and unit variance, on the network's device; B at least 2.
    y: [B] targets, such as class numbers as int64. problem: that they are of.
    """

    x: Tensor
    y: Tensor
    problem: Problem = CLASSIFICATION

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or len(self.x) < 2 or not self.x.is_floating_point():
            raise ConfigError(
                f"Batch: x is {self.x.dtype} {tuple(self.x.shape)}, wanted float32 [B, C, H, W] with B of at "
                "least 2; normalise the images with Task.normalise"
            )
        kind = torch.int64 if self.problem == CLASSIFICATION else self.y.dtype
        if self.y.shape != self.x.shape[:1] or self.y.dtype != kind:
            raise ConfigError(
                f"Batch: y is {self.y.dtype} {tuple(self.y.shape)}, wanted {kind} ({len(self.x)},), one "
                "target for each image, such as a class number"
            )

    def __len__(self) -> int:
        return len(self.y)


def draw_batch(task: Task, images: int = 64, *, seed: int = 0) -> Batch:
    """Draws `images` different training images of `task`, normalised and not augmented."""
    if images > len(task.train):
        raise ConfigError(
            f"draw_batch: got {images} images, but task {task.name!r} has {len(task.train)} to train on"
        )
    chosen = rng(seed, "proxy batch").choice(len(task.train), images, replace=False)
    index = torch.from_numpy(chosen).to(task.train.y.device)
    return Batch(task.normalise(task.train.x[index]), task.train.y[index], task.problem)


Proxy = Callable[[nn.Module, Batch], float]
"""Scores an untrained network on a batch; larger is better. Neither argument is changed."""

PROXIES: dict[str, Proxy] = {}
"""All proxies by name, cheapest kinds first."""
DEFAULT = ("params", "macs", "l2_norm")
"""The proxies that rank well on every published space, if none the best; others fail on some."""
FAILED = -1e30
"""Stands for a proxy that cannot be computed: below every score, so that it ranks last."""

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def proxy(measure: Callable[[nn.Module, Batch], Tensor]) -> Proxy:
    """Makes a proxy, a pure function, of a measure that may do what it likes to what it is given.

    The measure gets copies of the batch and of the network, all of whose parameters require gradients, and
    draws from a random stream of its own. The copy is in eval mode, its batch-norms in training mode:
    activations are normalised by the batch, as in the published codes, while dropout, drop-path and an
    auxiliary head, which would only add noise, are off.

    Raises:
        TrialError: naming the proxy; with reason `nan` when its score is not finite.
    """
    name = measure.__name__

    @wraps(measure)
    def pure(network: nn.Module, batch: Batch) -> float:
        try:
            with isolated(0, "proxy", name), torch.enable_grad():
                found = measure(_copy(network), Batch(batch.x.clone(), batch.y.clone(), batch.problem))
        except TrialError as error:
            raise TrialError(error.reason, f"proxy {name!r}: {error}") from error
        score = float(found.detach())
        if not math.isfinite(score):
            raise TrialError("nan", f"proxy {name!r}: got a score of {score}, wanted a finite one")
        return score

    PROXIES[name] = pure
    return pure


def layers(network: nn.Module) -> list[Layer]:
    """Every convolution and linear layer, in the order of registration.

    Raises:
        TrialError: with reason `metric` when there is none.
    """
    found = [module for module in network.modules() if isinstance(module, Layer)]
    if not found:
        raise TrialError("metric", "the network has no convolution and no linear layer; use another proxy")
    return found


def logits(network: nn.Module, x: Tensor) -> Tensor:
    """The logits `[B, classes]` of images `x`, those of an auxiliary head left out.

    Raises:
        TrialError: with reason `nan` when they are not finite.
    """
    output = network(x)
    scores: Tensor = output[0] if isinstance(output, tuple) else output
    _require_finite("logits", [scores])
    return scores


def loss(network: nn.Module, batch: Batch) -> Tensor:
    """The mean loss `[]` of a batch."""
    return batch.problem.loss(logits(network, batch.x), batch.y)


def gradients(value: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """The gradient of a scalar for each of `inputs`: zeros where it does not depend on one.

    Raises:
        TrialError: with reason `no-grad` when it depends on none, `nan` when a gradient is not finite.
    """
    if not value.requires_grad:
        raise TrialError("no-grad", "the logits depend on no parameter; does the network detach them?")
    found = torch.autograd.grad(value, inputs, create_graph=create_graph, materialize_grads=True)
    _require_finite("gradients", found)
    return found


def total(values: Iterable[Tensor]) -> Tensor:
    """The sum `[]` of tensors of any shape."""
    return torch.stack([value.sum() for value in values]).sum()


def _copy(network: nn.Module) -> nn.Module:
    twin = copy.deepcopy(network).requires_grad_(requires_grad=True).eval()
    for module in twin.modules():
        if isinstance(module, BatchNorm):
            module.train()
    return twin


def _require_finite(what: str, tensors: Iterable[Tensor]) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise TrialError("nan", f"the {what} are not finite; wanted a network that is normalised throughout")


# -- from sizes and weights alone ------------------------------------------------------------------------


def params(network: nn.Module, batch: Batch) -> float:  # noqa: ARG001 - one signature for all
    """The number of trainable parameters, auxiliary heads included; uses no image."""
    return float(count_params(network))


PROXIES["params"] = params


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
def grasp(network: nn.Module, batch: Batch) -> Tensor:
    """The sum over weights of −(H ∂L/∂θ) ⊙ θ with the Hessian H; any labelled batch.

    Wang et al. 2020 (GraSP) as in Abdelfattah et al. 2021, eq. 1, in whose sign larger is better. Deviations
    from GraSP: temperature 1, and both gradients are of the same batch.
    """
    weights = [layer.weight for layer in layers(network)]
    grads = gradients(loss(network, batch), weights, create_graph=True)
    product = total(grad.detach() * grad for grad in grads)
    return -total(w * hg for w, hg in zip(weights, gradients(product, weights), strict=True))


def _weights_and_gradients(network: nn.Module, batch: Batch) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    weights: list[Tensor] = [layer.weight for layer in layers(network)]
    return weights, gradients(loss(network, batch), weights)


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
    parts = slice(None, middle), slice(middle, None)
    halves = [Batch(batch.x[part], batch.y[part], batch.problem) for part in parts]
    first, second = (gradients(loss(network, half), weights) for half in halves)
    steadiness = [_steadiness(torch.stack(pair)) for pair in zip(first, second, strict=True)]
    return torch.stack([torch.where(value > 0, value.log(), 0.0) for value in steadiness]).sum()


def _steadiness(grads: Tensor) -> Tensor:
    """The sum `[]` of E|g| / std(g) for gradients `[minibatches, ...]`."""
    mean, std = grads.abs().mean(dim=0), grads.std(dim=0, correction=0)
    return torch.where(std > 0, mean / std, 0.0).sum()


# -- from activations and from the gradient of the logits for the images --------------------------------

_ATEN = torch.ops.aten
_RELUS = (_ATEN.relu.default, _ATEN.relu_.default, _ATEN.hardtanh.default, _ATEN.hardtanh_.default)
_FLOOR = 1e-5  # of an eigenvalue


@proxy
def nwot(network: nn.Module, batch: Batch) -> Tensor:
    """The score log |K| of K_ij, the number of units that agree on images i and j; about 64 images.

    Mellor et al. 2021 (NAS without training), eq. 2; the labels are ignored. Deviations: every ReLU and hard
    tanh counts (ReLU6 is one), be it a module or a function, where the published code sees modules;
    eigenvalues under 1e-5 count as 1e-5, so that a network with the same code for several images scores low,
    and not −∞.
    """
    codes = _codes(network, batch)
    agreements = torch.stack([_agreements(code) for code in codes]).sum(dim=0)
    spectrum: Tensor = torch.linalg.eigvalsh(agreements)
    return spectrum.clamp(min=_FLOOR).log().sum()


def _agreements(code: Tensor) -> Tensor:
    """For each pair of images `[B, B]`, how many of the units `[B, units]` are equal."""
    signs = 2 * code.float() - 1
    return (code.shape[1] + (signs @ signs.T).double()) / 2


def _codes(network: nn.Module, batch: Batch) -> list[Tensor]:
    """Which units of each ReLU are on, `[B, units]` bool."""
    codes: list[Tensor] = []

    def see(operator: object, _args: object, _kwargs: object, output: object) -> None:
        if operator in _RELUS:
            codes.extend((y > 0).flatten(1) for y in tensors(output))

    with torch.no_grad(), Seeing(see):
        logits(network, batch.x)
    if not codes:
        raise TrialError("metric", "the network runs no ReLU, whose codes are compared; use another proxy")
    return codes


_K = 1e-5  # keeps the logarithms finite; the constant of the paper's code


@proxy
def jacov(network: nn.Module, batch: Batch) -> Tensor:
    """The score −Σ_i [log(σ_i + k) + 1 / (σ_i + k)] of the eigenvalues σ of the images' correlations.

    Mellor et al. 2020 (NAS without training), the score of the first version, arXiv 2006.04647v1. A network
    that reacts to all images alike scores lowest, near −(B − 1) / k.
    """
    x = batch.x.requires_grad_()
    # A clone, for a network may begin in place.
    (jacobian,) = gradients(logits(network, x.clone()).sum(), [x])
    spectrum: Tensor = torch.linalg.eigvalsh(_correlations(jacobian.flatten(1).double()))
    shifted = spectrum.clamp(min=0) + _K
    return -(shifted.log() + 1 / shifted).sum()


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

    def see(_operator: object, _args: object, _kwargs: object, output: object) -> None:
        for y in tensors(output):
            if y.ndim == 4 and y.shape[2:].numel() > 1 and y.is_floating_point():
                maps[:] = [y]

    with Seeing(see):
        scores = logits(network, x)
    return maps[0] if maps else scores


# -- scores of architectures ------------------------------------------------------------------------------


def log_rank(scores: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    """One score `[m]` for each of m architectures: the sum over proxies of log(rank / m), at most 0.

    Lee & Ham 2024 (AZ-NAS), "Non-linear ranking aggregation": rank m is the best, equal scores share the mean
    of their ranks; being among the worst for one proxy costs more than being the best for another gains.

    scores: by proxy, of the same m architectures in the same order; larger is better, none may be NaN.
    """
    from scipy.stats import rankdata

    lengths = {name: len(values) for name, values in scores.items()}
    if len(set(lengths.values())) != 1:
        raise ConfigError(f"log_rank: got {lengths or 'nothing'}, wanted the same number of scores by proxy")
    table = np.array([*scores.values()], dtype=np.float64)
    if np.isnan(table).any():
        raise ConfigError(f"log_rank: got nan at {np.argwhere(np.isnan(table)).tolist()}; leave these out")
    total: NDArray[np.float64] = np.log(rankdata(table, axis=1) / table.shape[1]).sum(axis=0)
    return total


class Scored:
    """Scores freshly initialised networks on one batch of training images, each once, without training them.

    As a searcher's features: call it with a genotype. As an evaluator: call `evaluate` with a trial.
    """

    def __init__(self, space: Space, task: Task, proxies: Sequence[str], *, images: int = 64) -> None:
        for name in proxies:
            if name not in PROXIES:
                raise ConfigError(unknown("proxy", name, PROXIES))
        self.space, self.task, self.proxies = space, task, tuple(proxies)
        self.batch = draw_batch(task, min(images, len(task.train)))
        self._known: dict[Genotype, dict[str, float]] = {}

    def __call__(self, genotype: Genotype) -> list[float]:
        """The score of each proxy in turn, `FAILED` where it has none."""
        try:
            scores = self.scores(genotype)
        except TrialError:  # an architecture that cannot be built; its trial will say why
            scores = {}
        return [scores.get(name, FAILED) for name in self.proxies]

    def scores(self, genotype: Genotype) -> dict[str, float]:
        """The scores by name; proxies that fail for this architecture are left out.

        Raises:
            TrialError: when the architecture cannot be built for the task's images.
        """
        if genotype not in self._known:
            with user_errors(), isolated(0, "proxies"):
                cost(self.space, genotype, self.task.image_shape)
                network = self.space.network(genotype).to(self.task.train.x.device)
            found = {}
            for name in self.proxies:
                try:
                    with user_errors():
                        found[name] = PROXIES[name](network, self.batch)
                except TrialError:  # which `evaluate` tells
                    continue
            self._known[genotype] = found
        return self._known[genotype]

    def evaluate(self, trial: Trial, rng: np.random.Generator) -> Mapping[str, float]:  # noqa: ARG002
        """The scores as a trial's metrics; every proxy must succeed."""
        scores = self.scores(trial.genotype)
        if failed := [name for name in self.proxies if name not in scores]:
            raise TrialError("proxy", f"{', '.join(failed)} cannot be computed for this architecture")
        return scores
