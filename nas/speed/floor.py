"""The bandwidth floor of a step: how many bytes it has to move, and how fast a device moves bytes.

Counted is the mathematics and not how a path does it. In the network run one operation after the other, each
convolution, pool and batch-norm is one pass forward and one backward. A pass reads every map and kernel that
it depends on once, and writes every map or gradient that is asked for once, in the element size that it
computes in (2 bytes in bfloat16). Backward, a convolution reads its input only for the gradient of its
kernel, and its kernel only for that of its input; batch-norm and a max-pool read their input again. All else
is free, since it is small or a neighbour can do it on the way: activations, sums, mixture weights,
concatenations, statistics, indices, the classifier, optimizers, the input pipeline. So the bytes are the
same for every path. One that does not fuse stays well below a share of 1; one that shares a pool among
edges, or lets a convolution normalise what it reads, saves passes that are counted here, and may come near 1
or above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from nas.dispatch import Args, Kwargs, Seeing
from nas.errors import ConfigError
from nas.speed.comparing import seconds_of

MAP_DIMENSIONS = 4
COPIED = 2**28
"""Bytes that are copied to measure a device: several times its cache."""
COPIES = 4
"""One after the other, so that the wait for the last one counts little."""

_FORWARD = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_batch_norm_with_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "max_pool2d_with_indices",
    "avg_pool2d",
    "_adaptive_avg_pool2d",
)
_FROM_GRADIENT_AND_INPUT = (
    "native_batch_norm_backward",
    "batch_norm_backward",
    "cudnn_batch_norm_backward",
    "miopen_batch_norm_backward",
    "max_pool2d_with_indices_backward",
)
_FROM_GRADIENT = ("avg_pool2d_backward", "_adaptive_avg_pool2d_backward")
_READ = {
    "convolution": (0, 1),
    **dict.fromkeys(_FORWARD, (0,)),
    **dict.fromkeys(_FROM_GRADIENT_AND_INPUT, (0, 1)),
    **dict.fromkeys(_FROM_GRADIENT, (0,)),
}
"""By operation: which of its arguments are read."""
_PASSES = ("conv", "batch_norm", "pool", "layer_norm", "group_norm")
"""What an operation that must be known here is called by."""


def bytes_moved(work: Callable[[], object]) -> int:
    """The bytes that a piece of work has to move, by this module's definition; to be asked of the plain path.

    Raises:
        ConfigError: when it holds a convolution, norm or pool that is not known here.
    """
    moving = _Moving()
    with Seeing(moving.see):
        work()
    return moving.bytes


def copy_bandwidth(device: torch.device, *, size: int = COPIED, repeats: int = 10) -> float:
    """Bytes a second that a device reads and writes together while it copies: the best of some repeats.

    size: bytes of the tensor.
    """
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        for _ in range(COPIES):
            target.copy_(source)

    copy()
    best = min(seconds_of(copy, device) for _ in range(repeats))
    return 2 * COPIES * source.nbytes / best


class _Moving:
    """Adds up the passes."""

    def __init__(self) -> None:
        self.bytes = 0

    def see(self, operator: OpOverload, args: Args, kwargs: Kwargs, output: object) -> None:  # noqa: ARG002 - a `See`
        read = _read(operator._schema.name.removeprefix("aten::"), args)
        if read is not None:
            written = output if isinstance(output, tuple) else (output,)
            self.bytes += sum(map(_map_bytes, (*read, *written)))


def _read(name: str, args: Sequence[object]) -> Sequence[object] | None:
    """What an operation reads; None where it is no pass."""
    if name == "convolution_backward":
        gradient, x, kernel, *_, wanted = args
        of_input, of_kernel, _ = cast(Sequence[bool], wanted)
        return gradient, *([x] if of_kernel else []), *([kernel] if of_input else [])
    if name in _READ:
        return [args[i] for i in _READ[name]]
    if any(word in name for word in _PASSES):
        raise ConfigError(
            f"floor: how many bytes {name!r} has to move is not known; add it to the table in {__name__}"
        )
    return None


def _map_bytes(value: object) -> int:
    if isinstance(value, Tensor) and value.dim() == MAP_DIMENSIONS and value.is_floating_point():
        return value.nbytes
    return 0
