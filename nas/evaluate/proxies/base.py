"""What every proxy is made of: purity, and the layers, logits and gradients of a private copy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import TrialError
from nas.evaluate.proxies.batch import Batch
from nas.seeding import isolated

Proxy = Callable[[nn.Module, Batch], float]
"""Scores an untrained network on a batch; larger is better. Neither argument is changed."""

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def proxy(measure: Callable[[nn.Module, Batch], Tensor]) -> Proxy:
    """Makes a pure function of a measure that may do what it likes to what it is given.

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
                found = measure(_copy(network), Batch(batch.x.clone(), batch.y.clone()))
        except TrialError as error:
            raise TrialError(error.reason, f"proxy {name!r}: {error}") from error
        score = float(found.detach())
        if not math.isfinite(score):
            raise TrialError("nan", f"proxy {name!r}: got a score of {score}, wanted a finite one")
        return score

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


def cross_entropy(network: nn.Module, batch: Batch) -> Tensor:
    """The mean loss `[]` of a batch."""
    return F.cross_entropy(logits(network, batch.x), batch.y)


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
