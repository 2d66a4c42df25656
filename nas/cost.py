"""What a network costs: parameters, multiply-accumulates, activation memory and measured latency."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.errors import SpaceError, TrialError
from nas.space import Space, describe
from nas.types import Genotype


@dataclass(frozen=True, slots=True)
class Cost:
    """Counted without running anything.

    params: number of trainable parameters.
    macs: multiply-accumulates of convolutions and linear layers for one image.
    activation_bytes: what one training image makes autograd keep for the backward pass, in float32.
    """

    params: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Measured milliseconds per batch.

    low_ms, high_ms: bootstrap 95 % interval of the median.
    """

    p50_ms: float
    p95_ms: float
    low_ms: float
    high_ms: float


def count_params(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def cost(space: Space, genotype: Genotype, image_shape: Sequence[int]) -> Cost:
    """Counts one architecture on the meta device for images `[C, H, W]`.

    Raises:
        TrialError: with reason `build` when it cannot be built or rejects such images.
    """
    try:
        network = space.network(genotype, meta=True)
        macs, saved = _measure(network, torch.zeros(2, *image_shape, device="meta"))
        return Cost(count_params(network), macs // 2, saved // 2)
    except SpaceError as error:
        raise TrialError("build", str(error)) from error
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise TrialError("build", f"images of {tuple(image_shape)} fail: {describe(error)}") from error


def latency(network: nn.Module, x: Tensor, *, repeats: int = 50, warmup: int = 10) -> Latency:
    """Times the forward pass of `network` in eval mode on `x [B, C, H, W]`, on the device where both are."""
    training = network.training
    network.eval()
    with torch.no_grad():
        times = np.array([_timed(network, x) for _ in range(warmup + repeats)][warmup:])
    network.train(training)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(times, (1000, repeats)), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    p50, p95 = np.quantile(times, [0.5, 0.95])
    return Latency(float(p50), float(p95), float(low), float(high))


def _timed(network: nn.Module, x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    start = time.perf_counter()
    network(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return 1e3 * (time.perf_counter() - start)


def _measure(network: nn.Module, x: Tensor) -> tuple[int, int]:
    """Multiply-accumulates and saved bytes of one training pass over `x`.

    An auxiliary head runs in training only; its operations are left out by a second pass without it.
    """
    with FlopCounterMode(display=False) as counter, _saving(network) as saved:
        output = network.train()(x)
    if isinstance(output, tuple):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(x)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    return int(counter.get_total_flops()) // 2, kept


@contextmanager
def _saving(network: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collects what autograd keeps for the backward pass by storage, weights and statistics not included.

    By storage, because a linear layer keeps a view of its weight.
    """
    own = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            saved[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
