"""How arrays of scikit-learn's kind are images: rows of features, and what shape their pixels have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nas.data.arrays import as_numpy

Images = NDArray[Any]
"""`[n, H, W, C]`."""
CHANNELS = 4
"""The most that an image has; a longer axis is one of space."""
LEAST_SIDE = 8
"""Of an image that is made of flat features, so that spaces can halve it."""


@dataclass(frozen=True)
class Layout:
    """What a row of features is as an image.

    shape: (H, W, C). features: pixels that a row has; the rest of the image is zero.
    flat: whether the images came as rows.
    """

    shape: tuple[int, int, int]
    features: int
    flat: bool

    @property
    def filled(self) -> bool:
        """Whether the features are no square."""
        return self.features < math.prod(self.shape)

    def shaped(self, rows: Images) -> Images:
        """Rows `[n, features]` as images."""
        missing = math.prod(self.shape) - self.features
        full = np.pad(rows, ((0, 0), (0, missing))) if missing else rows
        return full.reshape(len(rows), *self.shape)


def rows_of(x: object) -> tuple[object, tuple[int, int, int] | None]:
    """Images as rows `[n, features]`, and the shape (H, W, C) that they had.

    Three axes are `[n, H, W]`. Of four, the last one is that of the channels where it has up to `CHANNELS`,
    else the second one; for a tensor of torch the second one comes first. What has other axes is left as it
    is, and has no shape.

    Raises:
        ValueError: when no axis can be that of the channels.
    """
    array = as_numpy(x) if isinstance(x, Tensor | list | tuple) else x
    if not isinstance(array, np.ndarray) or array.ndim not in (3, 4):
        return array, None
    if array.ndim == 3:
        array = array[..., None]
    elif not _last(array.shape, first=isinstance(x, Tensor)):
        array = array.transpose(0, 2, 3, 1)
    _, height, width, channels = array.shape
    return array.reshape(len(array), -1), (height, width, channels)


def _last(shape: tuple[int, ...], *, first: bool) -> bool:
    """Whether the channels come last. first: what is believed where they could come first as well."""
    before, after = shape[1] <= CHANNELS, shape[3] <= CHANNELS
    if not before and not after:
        raise ValueError(
            f"X has shape {shape}, wanted images [n, H, W, C] or [n, C, H, W] of up to {CHANNELS} channels"
        )
    return after and not (first and before)


def layout(shape: tuple[int, int, int] | None, features: int) -> Layout:
    """That of images of a shape, or of flat features: the square that holds them."""
    if shape is not None:
        return Layout(shape, features, flat=False)
    side = max(LEAST_SIDE, math.isqrt(features - 1) + 1)
    return Layout((side, side, 1), features, flat=True)
