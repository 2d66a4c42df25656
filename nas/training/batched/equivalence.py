"""Whether operations that run together give what each gives by itself: tried once, before they are used."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nas.devices import exact
from nas.seeding import torch_rng
from nas.space.batching import channels_last
from nas.training.batched.execution_plan import Layers, chain_of, outcome_of
from nas.training.optimizer import gradients

TOLERANCE = {("cpu", torch.float64): 1e-9, ("cpu", torch.float32): 1e-3}
"""Largest relative difference, in the norm, of outputs and gradients."""
OTHERWISE = 1e-2
"""On other devices."""

_TRIED: dict[Hashable, bool] = {}


def known(op: nn.Module) -> Layers | None:
    """The layers by which an operation runs together with others of its kind; None where it runs by itself.

    Each kind is tried once on each device, on random maps: two of it together have to be what each is alone;
    where one fails, a warning says so.
    """
    chain, first = chain_of(op), next(itertools.chain(op.parameters(), op.buffers()), None)
    if chain is None or first is None or first.is_meta:
        return chain
    key = (first.device.type, first.dtype, *(rule.key for _, rule in chain))
    if key not in _TRIED:
        problem = _problem([op, op], first)
        _TRIED[key] = problem is None
        if problem is not None:
            warnings.warn(
                f"execution: {_named(op)} on {first.device} is not batched what it is alone ({problem}); "
                f"such operations do not run batched",
                stacklevel=2,
            )
    return chain if _TRIED[key] else None


def _named(op: nn.Module) -> str:
    return ", ".join(type(layer).__name__ for layer, _ in chain_of(op) or ())


def _problem(given: Sequence[nn.Module], like: Tensor) -> str | None:
    """What differs between copies of operations apart and together."""
    generator = torch_rng(0, "trust")
    ops = [copy.deepcopy(op).train() for op in given]
    with torch.no_grad():
        for parameter in (p for op in ops[1:] for p in op.parameters()):
            parameter.add_(0.1 * _normal(parameter.shape, like, generator))
    x = channels_last(_normal((4, _channels(ops[0]), 6, 5), like, generator)).requires_grad_()
    scale = (1 + 0.5 * _normal((len(ops),), like, generator)).requires_grad_()
    inputs = [x, scale, *(p.requires_grad_() for o in ops for p in o.parameters())]
    try:
        with _apart_from_all(like.device):
            alone = torch.stack([weight * o(x) for o, weight in zip(ops, scale, strict=True)])
            along = _normal(alone.shape, like, generator)
            expected = [alone, *gradients((alone * along).sum(), inputs)]
            maps = outcome_of(ops, x).chunk(len(ops), dim=1)
            joint = torch.stack([weight * y for weight, y in zip(scale, maps, strict=True)])
            found = [joint, *gradients((joint * along).sum(), inputs)]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return _difference(expected, found, TOLERANCE.get((like.device.type, like.dtype), OTHERWISE))


@contextmanager
def _apart_from_all(device: torch.device) -> Iterator[None]:
    """Runs a block as if nothing ran around it: gradients on, no autocast, nothing kept for a checkpoint."""
    with (
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
        exact(),
    ):
        yield


@torch.no_grad()
def _difference(expected: Sequence[Tensor], found: Sequence[Tensor], limit: float) -> str | None:
    # A gradient that is nothing but rounding, as before a norm of one channel, is judged by the others' size.
    floor = 0.1 * max(a.norm().item() for a in expected)
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        error = ((a - b).norm() / a.norm().clamp_min(floor)).item()
        if not error <= limit:
            what = "output" if i == 0 else "gradient of the input" if i == 1 else "gradient of a weight"
            return f"the {what} differs by {error:.1e} of its norm"
    return None


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator).to(like)


def _channels(op: nn.Module) -> int:
    """Channels that an operation reads, by its first weights."""
    for module in op.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, nn.BatchNorm2d):
            return module.num_features
    return 4
