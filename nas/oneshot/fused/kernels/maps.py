"""What a convolution of a group of operations reads: which map, where, and through what."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Where a convolution reads: kernel side, stride, dilation, and (height, width) before and after it.

    batch: images.
    """

    kernel: int
    stride: int
    dilation: int
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
        """By the kernels' names, without the dilation that only depthwise ones have."""
        return {
            "HI": self.before[0],
            "WI": self.before[1],
            "HO": self.after[0],
            "WO": self.after[1],
            "STRIDE": self.stride,
            "K": self.kernel,
        }


@dataclass(frozen=True)
class Norm:
    """Statistics of a batch-norm, [G, C] each: mean, unbiased variance, and one over the biased deviation.

    on: [G] 0 where nothing is computed, so that the statistics are zeros; None where all is.
    """

    mean: Tensor
    var: Tensor
    inv: Tensor
    on: Tensor | None = None

    @classmethod
    def empty(cls, groups: int, channels: int, device: torch.device, on: Tensor | None = None) -> Norm:
        """Statistics to be filled in."""
        make = torch.empty if on is None else torch.zeros
        mean, var, inv = make(3, groups, channels, device=device)
        return cls(mean, var, inv, on)

    def part(self, start: int, stop: int) -> Norm:
        """Those of some groups."""
        on = None if self.on is None else self.on[start:stop]
        return Norm(self.mean[start:stop], self.var[start:stop], self.inv[start:stop], on)


@dataclass(frozen=True)
class Source:
    """A map that a convolution reads, [P, C] for all groups or [G, P, C].

    norm: batch-norm that it is read through, and a ReLU after it. relu: whether it is read through a ReLU.
    on: [G] 0 for the operations that are not computed; None where all are.
    """

    x: Tensor
    relu: bool = False
    norm: Norm | None = None
    on: Tensor | None = None

    @property
    def group(self) -> int:
        """Numbers from one group's map to the next."""
        return 0 if self.x.dim() == 2 else self.x.shape[1] * self.x.shape[2]

    @property
    def pre(self) -> int:
        """What is done while it is read, see the kernels."""
        return 2 if self.norm is not None else int(self.relu)

    def flags(self, otherwise: Tensor) -> Tensor:
        """Which operations are computed; where all are, anything, for it is not read."""
        return otherwise if self.on is None else self.on

    def statistics(self, otherwise: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of its batch-norm; where it has none, anything, for it is not read."""
        return (otherwise, otherwise) if self.norm is None else (self.norm.mean, self.norm.inv)
