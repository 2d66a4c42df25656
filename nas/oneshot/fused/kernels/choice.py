"""Depthwise convolutions in CUDA C++ where those run and are right, else in Triton."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import cast

import torch
from torch import Tensor

from nas.oneshot.fused.kernels import launch, native
from nas.oneshot.fused.kernels.maps import Source, Window
from nas.oneshot.fused.kernels.native import NativeError, Variant

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Largest relative difference, in the norm, of what the two make of a map of a type."""

_RIGHT: set[Hashable] = set()
"""Calls of CUDA C++ that gave what Triton gives, by their kind."""

_Outcome = tuple[Tensor | None, ...]


def depthwise(source: Source, weight: Tensor, window: Window) -> Tensor:
    """`weight` [G, K * K, C] to maps [G, P, C]."""
    (out,) = _right(
        "forward", Variant.of(window, source, weight), source,
        lambda: (native.depthwise(source, weight, window),),
        lambda: (launch.depthwise(source, weight, window),),
    )  # fmt: skip
    return cast(Tensor, out)


def depthwise_gradients(
    grad: Tensor, source: Source, weight: Tensor, window: Window, *, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of what the source's ReLU or batch-norm gets, and of the kernels; as far as wanted."""
    dx, dw = _right(
        wanted, Variant.of(window, source, weight, grad), source,
        lambda: native.depthwise_gradients(grad, source, weight, window, wanted=wanted),
        lambda: launch.depthwise_gradients(grad, source, weight, window, wanted=wanted),
    )  # fmt: skip
    return dx, dw


def _right(
    what: Hashable,
    variant: Variant | None,
    source: Source,
    fast: Callable[[], _Outcome],
    sure: Callable[[], _Outcome],
) -> _Outcome:
    """The outcome of CUDA C++, or that of Triton, with which the first of each kind is compared.

    While a CUDA graph is captured nothing can be compared, so Triton computes what is new then.
    """
    like = source.x
    new = (what, variant) not in _RIGHT
    if variant is None or (new and _captured(like.device)) or native.problem(like.device) is not None:
        return sure()
    try:
        found = fast()
    except NativeError as failure:
        native.refuse(str(failure))
        return sure()
    if not new:
        return found
    found, expected = (tuple(_written(t, source.on) for t in outcome) for outcome in (found, sure()))
    return _compared((what, variant), found, expected, TOLERANCE[like.dtype])


def _written(outcome: Tensor | None, on: Tensor | None) -> Tensor | None:
    """An outcome, zero where no operation has written to it."""
    if outcome is None or on is None:
        return outcome
    each = on if len(outcome) == len(on) else on.amax(0, keepdim=True)
    return torch.where(each.view(-1, 1, 1) != 0, outcome, 0)


def _captured(device: torch.device) -> bool:
    """Whether what is launched goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _compared(
    key: tuple[Hashable, Variant], found: _Outcome, expected: _Outcome, tolerance: float
) -> _Outcome:
    """What was found, where it is what was expected; else the latter."""
    difference = _difference(expected, found)
    if difference is None:
        return expected
    if difference > tolerance:
        native.refuse(f"{key[1]} differs from Triton by {difference:.1e} of its norm")
        return expected
    _RIGHT.add(key)
    return found


@torch.no_grad()
def _difference(expected: _Outcome, found: _Outcome) -> float | None:
    """The largest relative difference, in the norm; none where outcomes tell nothing, zero or infinite."""
    errors = []
    for a, b in zip(expected, found, strict=True):
        if a is not None and b is not None:
            size = a.float().norm().item()
            if not 0 < size < math.inf:
                return None
            error = (a.float() - b.float()).norm().item() / size
            errors.append(math.inf if math.isnan(error) else error)
    return max(errors, default=None)
