"""What the depthwise kernels in CUDA C++ are compiled for, and in which blocks they run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.oneshot.fused.kernels.maps import Source, Taps, Window
from nas.oneshot.fused.kernels.tiles import cdiv

THREADS = 128
"""In a block, at most; the source says the same."""
TILE = 32
"""Threads side by side along the channels, at most."""

_TYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
_KINDS = tuple(itertools.product((3, 5, 7), (1, 2)))


@dataclass(frozen=True)
class Variant:
    """What the kernels are compiled for: the parameters of the templates, in their order.

    lanes: channels of a thread. whole: whether strips of pixels are cut off at no edge. kinds: (side,
    dilation) of each kind of convolution.
    """

    type: str
    lanes: int
    channels: int
    stride: int
    pre: int
    whole: bool
    kinds: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, window: Window, source: Source, taps: Taps, *maps: Tensor) -> Variant | None:
        """The one that reads a source and other maps; none where there is none, as for other types."""
        maps = (source.x, *maps)
        norm = () if source.norm is None else (source.norm.scale, source.norm.shift)
        types, floats = {m.dtype for m in maps}, {f.dtype for f in (taps.like, *norm)}
        if len(types) > 1 or not types <= _TYPES.keys() or floats != {torch.float32}:
            return None
        if window.stride not in (1, 2) or not {*taps.kinds} <= {*_KINDS}:
            return None
        pairs = taps.inputs % 2 == 0 and all(t.data_ptr() % (2 * t.itemsize) == 0 for t in maps + norm)
        (_, before), (_, after) = window.before, window.after
        whole = before == after * window.stride and after % _strip(taps.kinds) == 0
        sizes = (taps.inputs, window.stride, source.pre)
        return cls(_TYPES[source.x.dtype], 2 if pairs else 1, *sizes, whole, taps.kinds)

    def expression(self, function: str) -> str:
        """A kernel's name in C++."""
        numbers = ", ".join(map(str, (self.lanes, self.channels, self.stride, self.pre)))
        kinds = ", ".join(str(10 * side + dilation) for side, dilation in self.kinds)
        return f"{function}<{self.type}, {numbers}, {str(self.whole).lower()}, {kinds}>"

    @property
    def tiles(self) -> int:
        """Of channels."""
        return cdiv(self.channels, self.lanes * TILE)

    @property
    def block(self) -> tuple[int, int]:
        """Threads along the channels of a tile, and strips."""
        wide = cdiv(cdiv(self.channels, self.lanes), self.tiles)
        return wide, THREADS // wide

    def blocks(self, batch: int, size: tuple[int, int]) -> int:
        """Of the strips of all maps of a batch, one after the other along each row."""
        return cdiv(batch * size[0] * cdiv(size[1], _strip(self.kinds)), self.block[1])


def _strip(kinds: Sequence[tuple[int, int]]) -> int:
    """Pixels of a thread along a row; the source says the same."""
    return 4 if max(side for side, _ in kinds) > 5 else 8
