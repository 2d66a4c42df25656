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
"""Of an image whose pixels come as a row, so that spaces can halve it."""
_WANTED = (
    "[n, H, W], [n, H, W, C] or [n, C, H, W], or rows of the pixels of square ones of at least "
    f"{LEAST_SIDE}x{LEAST_SIDE}; for tables take another estimator, such as scikit-learn's "
    "HistGradientBoostingClassifier"
)


@dataclass(frozen=True)
class Layout:
    """What a row of pixels is as an image.

    shape: (H, W, C). flat: whether the images came as rows.
    """

    shape: tuple[int, int, int]
    flat: bool

    def shaped(self, rows: Images) -> Images:
        """Rows `[n, H * W * C]` as images."""
        return rows.reshape(len(rows), *self.shape)


def rows_of(x: object) -> tuple[object, tuple[int, int, int] | None]:
    """Images as rows `[n, features]`, and the shape (H, W, C) that they had.

    Three axes are `[n, H, W]`. Of four, the last one is that of the channels where it has up to `CHANNELS`,
    else the second one; for a tensor of torch the second one comes first. What has other axes is left as it
    is, and has no shape.

    Raises:
        ValueError: when no axis can be that of the channels, or for a table with named columns.
    """
    if hasattr(x, "columns"):
        what = f"X is a {type(x).__name__}, whose columns are features"
        raise ValueError(f"{what}, wanted images: {_WANTED}; where they are pixels, give X.to_numpy()")
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
    """That of images of a shape, or of rows of pixels, which are square images.

    Raises:
        ValueError: when a row is no such image.
    """
    if shape is not None:
        return Layout(shape, flat=False)
    side = math.isqrt(features)
    if side * side != features or side < LEAST_SIDE:
        raise ValueError(f"X has rows of {features} features, wanted images: {_WANTED}")
    return Layout((side, side, 1), flat=True)
