"""Depthwise convolutions in CUDA C++ where those run and are right, else in Triton."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from nas.oneshot.fused.kernels import launch, native
from nas.oneshot.fused.kernels.maps import Drawn, Source, Taps, Window
from nas.oneshot.fused.kernels.native import NativeError
from nas.oneshot.fused.kernels.variant import Variant

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Largest relative difference, in the norm, of what the two make of a map of a type."""

_RIGHT: set[Hashable] = set()
"""Calls of CUDA C++ that gave what Triton gives, by their kind."""

_Work = Callable[[Tensor | None], Tensor | None]
"""Makes a map, and fills in parts of gradients of kernels, as far as there are."""


def depthwise(source: Source, taps: Taps, window: Window) -> Tensor:
    """To maps [G, P, C], of which those that are not drawn are not written."""
    call = _Call("forward", Variant.of(window, source, taps), source, taps)
    return cast(Tensor, call.right(
        lambda _: native.depthwise(source, taps, window),
        lambda _: launch.depthwise(source, taps, window),
        None,
    ))  # fmt: skip


def depthwise_gradients(
    grad: Tensor, source: Source, taps: Taps, window: Window, *, for_x: bool, part: Tensor | None
) -> Tensor | None:
    """Of what the source's ReLU or batch-norm gets, where wanted, and of the kernels, to `part`.

    part: [blocks, numbers] float32, to be added up over blocks of pixels; `taps.places` says which numbers of
    each row are an operation's. Those of operations that are not drawn are not written.

    Returns `[M, P, C]` of each of the source's maps, summed over the operations that share it.
    """
    call = _Call((for_x, part is not None), Variant.of(window, source, taps, grad), source, taps)
    return call.right(
        lambda part: native.depthwise_gradients(grad, source, taps, window, for_x=for_x, part=part),
        lambda part: launch.depthwise_gradients(grad, source, taps, window, for_x=for_x, part=part),
        part,
    )


@dataclass(frozen=True)
class _Call:
    """What is wanted of convolutions. variant: the kernels in CUDA C++ that do it, where there are any."""

    what: Hashable
    variant: Variant | None
    source: Source
    taps: Taps

    @property
    def key(self) -> Hashable:
        """What calls that take the same way through a kernel have in common."""
        reading = "own" if self.source.apart else self.source.maps
        return self.what, self.variant, self.source.drawn is not None, reading

    def right(self, fast: _Work, sure: _Work, part: Tensor | None) -> Tensor | None:
        """The outcome of CUDA C++, or that of Triton, with which the first of each kind is compared.

        While a CUDA graph is captured nothing can be compared, so Triton computes what is new then.
        """
        device, new = self.source.x.device, self.key not in _RIGHT
        if self.variant is None or (new and _captured(device)) or native.problem(device) is not None:
            return sure(part)
        spare = None if part is None or not new else part.clone()
        try:
            found = fast(part)
        except NativeError as failure:
            native.refuse(str(failure))
            return sure(part)
        if not new:
            return found
        expected = sure(spare)
        if self._agree(self._written(expected, spare), self._written(found, part)):
            return found
        if part is not None and spare is not None:
            part.copy_(spare)
        return expected

    def _written(self, outcome: Tensor | None, part: Tensor | None) -> list[Tensor]:
        """The numbers of an outcome and the sums of a part that are written; zeros where nothing is drawn."""
        drawn, found = self.source.drawn, list[Tensor]()
        if outcome is not None:
            found.append(outcome if drawn is None else torch.where(_on(drawn, outcome), outcome, 0))
        if part is not None:
            found.append(part.index_select(1, _columns(self.taps)).sum(0))
        return found

    def _agree(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
        """Whether what was found can be used, and from now on."""
        difference = _difference(expected, found)
        if difference is None:
            return False
        if difference > TOLERANCE[self.source.x.dtype]:
            native.refuse(f"{self.variant} differs from Triton by {difference:.1e} of its norm")
            return False
        _RIGHT.add(self.key)
        return True


def _on(drawn: Drawn, outcome: Tensor) -> Tensor:
    """Which maps of an outcome [G, P, C], or [1, P, C] for all operations, are computed."""
    on = torch.zeros_like(drawn.live).index_copy_(0, drawn.order.long(), drawn.live)
    each = on if len(outcome) == len(on) else on.amax(0, keepdim=True)
    return each.view(-1, 1, 1) != 0


def _columns(taps: Taps) -> Tensor:
    """Which numbers of a row of parts the gradients of all operations are."""
    sizes = [taps.inputs * side * side for side, _ in taps.kinds]
    spans = zip(taps.places.tolist(), taps.kind.tolist(), strict=True)
    return torch.cat([torch.arange(start, start + sizes[kind]) for start, kind in spans]).to(
        taps.places.device
    )


def _captured(device: torch.device) -> bool:
    """Whether what is launched goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@torch.no_grad()
def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float | None:
    """The largest relative difference, in the norm; none where outcomes tell nothing, zero or infinite."""
    errors = []
    for a, b in zip(expected, found, strict=True):
        size = a.float().norm().item()
        if not 0 < size < math.inf:
            return None
        error = (a.float() - b.float()).norm().item() / size
        errors.append(math.inf if math.isnan(error) else error)
    return max(errors, default=None)
