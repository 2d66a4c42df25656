"""What the convolutions of one launch read: which maps, where, through what, and by which kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Where operations read: their stride, and (height, width) before and after it.

    batch: images.
    """

    stride: int
    before: tuple[int, int]
    after: tuple[int, int]
    batch: int

    @property
    def inputs(self) -> int:
        """Pixels read."""
        return self.batch * self.before[0] * self.before[1]

    @property
    def outputs(self) -> int:
        """Pixels written."""
        return self.batch * self.after[0] * self.after[1]

    def sizes(self) -> dict[str, int]:
        """By the names that the programs give them."""
        return {
            "HI": self.before[0],
            "WI": self.before[1],
            "HO": self.after[0],
            "WO": self.after[1],
            "STRIDE": self.stride,
        }


@dataclass(frozen=True)
class Drawn:
    """Which of G operations are computed, as the device alone knows.

    order: [G] int32 their numbers, those first that are computed. live: [G] int32 1 for as many places of
      `order` as are computed, then 0. most: how many are computed at most; no more programs are begun.
    """

    order: Tensor
    live: Tensor
    most: int


@dataclass(frozen=True)
class Taps:
    """The kernels of G convolutions, read where their modules keep them.

    addresses: [G] int64 of contiguous tensors of the type of `like`: [C, 1, K, K] of a depthwise convolution,
      [O, I, K, K] of another.
    kinds: (side K, dilation) of each kind that is among them. kind: [G] int32 which of those each is.
    places: [G] int32 where the gradient of each begins in a row of parts of gradients.
    inputs, outputs: channels. last: whether their channels in are last in memory, [O, K, K, I].
    half: 0, or how many channels the first of two 1x1 kernels makes that each convolution then has, one after
      the other in all of these tensors; the second reads the pixel below and to the right.
    """

    addresses: Tensor
    like: Tensor
    kinds: tuple[tuple[int, int], ...]
    kind: Tensor
    places: Tensor
    inputs: int
    outputs: int
    last: bool = False
    half: int = 0

    @property
    def groups(self) -> int:
        """How many convolutions there are."""
        return len(self.kind) // (2 if self.half else 1)

    @property
    def most(self) -> int:
        """Taps of a kernel, at most."""
        return 2 if self.half else max(side * side for side, _ in self.kinds)


@dataclass(frozen=True)
class Norm:
    """Statistics of a batch-norm, [G, C] each: mean, unbiased variance, and one over the biased deviation.

    scale, shift: what it makes of x is scale x + shift, its own weight and bias included.
    on: [G] 0 where nothing is computed, so that the statistics are zeros; None where all is.
    """

    mean: Tensor
    var: Tensor
    inv: Tensor
    scale: Tensor
    shift: Tensor
    on: Tensor | None = None

    @classmethod
    def empty(cls, groups: int, channels: int, device: torch.device, on: Tensor | None = None) -> Norm:
        """Statistics to be filled in."""
        make = torch.empty if on is None else torch.zeros
        mean, var, inv, scale, shift = make(5, groups, channels, device=device)
        return cls(mean, var, inv, scale, shift, on)

    @property
    def tensors(self) -> list[Tensor]:
        """All five, in order."""
        return [self.mean, self.var, self.inv, self.scale, self.shift]

    @property
    def weight(self) -> Tensor:
        """[G, C] That of the batch-norms themselves; 0 where nothing is computed."""
        return torch.where(self.inv > 0, self.scale / self.inv, 0.0)

    @property
    def bias(self) -> Tensor:
        """[G, C] That of the batch-norms themselves."""
        return self.shift + self.mean * self.scale

    def part(self, start: int, stop: int) -> Norm:
        """Those of some groups."""
        on = None if self.on is None else self.on[start:stop]
        mean, var, inv, scale, shift = (tensor[start:stop] for tensor in self.tensors)
        return Norm(mean, var, inv, scale, shift, on)


@dataclass(frozen=True)
class Affine:
    """Weights and biases of batch-norms that have them: addresses [G] int64 of tensors [C] as `like`."""

    weights: Tensor
    biases: Tensor
    like: Tensor


@dataclass(frozen=True)
class Normed:
    """Batch-norms after convolutions: where their statistics go, and what these depend on.

    affine: None where they have no weights and biases. tickets: see `Layout`.
    """

    norm: Norm
    eps: float
    affine: Affine | None
    tickets: Tensor


@dataclass(frozen=True)
class Source:
    """The maps that G convolutions read: [P, C] for all of them, one of each own [G, P, C], or `shared`.

    norm: batch-norm that they are read through, and a ReLU after it. relu: whether they are read through a
    ReLU. drawn: which operations are computed; None where all are. shared: whether there are M maps
    [M, P, C], of which operation g reads that of number g % M.
    """

    x: Tensor
    relu: bool = False
    norm: Norm | None = None
    drawn: Drawn | None = None
    shared: bool = False

    @property
    def size(self) -> int:
        """Numbers from one map to the next."""
        return self.x.shape[-2] * self.x.shape[-1]

    @property
    def maps(self) -> int:
        """How many there are."""
        return 1 if self.x.dim() == 2 else len(self.x)

    @property
    def apart(self) -> bool:
        """Whether each operation has a map of its own."""
        return self.x.dim() == 3 and not self.shared

    @property
    def pre(self) -> int:
        """What is done while it is read, see the programs."""
        return 2 if self.norm is not None else int(self.relu)

    def programs(self, groups: int) -> int:
        """How many of G operations get programs."""
        return groups if self.drawn is None else min(self.drawn.most, groups)

    def which(self, otherwise: Tensor) -> tuple[Tensor, Tensor]:
        """Order and live of `drawn`; where all are computed, anything, for it is not read."""
        return (otherwise, otherwise) if self.drawn is None else (self.drawn.order, self.drawn.live)

    def statistics(self, otherwise: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift of its batch-norm; where it has none, anything, for it is not read."""
        return (otherwise, otherwise) if self.norm is None else (self.norm.scale, self.norm.shift)


def adjacent(maps: Sequence[Tensor]) -> Tensor | None:
    """Maps `[B, C, H, W]` of one size, channels last, as one `[M * B, C, H, W]`; None where they are not so.

    That is where each begins in memory where the one before ends. Autograd does not see it.
    """
    first, size = maps[0], maps[0].numel()
    memory = first.untyped_storage().data_ptr()
    for at, x in enumerate(maps):
        alike = x.shape == first.shape and x.dtype == first.dtype
        here = x.untyped_storage().data_ptr() == memory
        here = here and x.storage_offset() == first.storage_offset() + at * size
        if not (alike and here and x.is_contiguous(memory_format=torch.channels_last)):
            return None
    batch, channels, height, width = first.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return first.detach().as_strided((len(maps) * batch, channels, height, width), strides)
