"""What every proxy is made of: purity, and the layers, logits and gradients of a private copy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nas.data.task import Task
from nas.errors import ConfigError, TrialError
from nas.seeding import isolated, rng


@dataclass(frozen=True, eq=False)
class Batch:
    """Labelled images, as a network in training sees them.

    x: [B, C, H, W] float32 of about zero mean and unit variance, on the network's device; B at least 2.
    y: [B] int64, in 0..num_classes-1.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or len(self.x) < 2 or not self.x.is_floating_point():
            raise ConfigError(
                f"Batch: x is {self.x.dtype} {tuple(self.x.shape)}, wanted float32 [B, C, H, W] with B of at "
                "least 2; normalise the images with Task.normalise"
            )
        if self.y.shape != self.x.shape[:1] or self.y.dtype != torch.int64:
            raise ConfigError(
                f"Batch: y is {self.y.dtype} {tuple(self.y.shape)}, wanted int64 ({len(self.x)},), one class "
                "number for each image"
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
    return Batch(task.normalise(task.train.x[index]), task.train.y[index])


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


class Watch(TorchFunctionMode):
    """Inside `with Watch(see):`, calls `see(function, output)` for each function of torch."""

    def __init__(self, see: Callable[[object, Tensor], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self._see(func, output)
        return output
