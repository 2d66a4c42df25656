"""Images and labels as plain numpy arrays: brought to one form and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nas.errors import DataError, unknown

Array: TypeAlias = NDArray[Any]
Labels: TypeAlias = NDArray[np.int64]

_LARGEST_WHOLE_FLOAT = 2.0**53


@dataclass(frozen=True, eq=False)
class Source:
    """Images and labels as a reader found them, not yet checked or split.

    x_train: [N, H, W] or [N, H, W, C] pixels.
    y_train: [N] class numbers or class names.
    x_test, y_test: the official test part, or None when there is none.
    classes: names in the order of the class numbers; None leaves them to the labels.
    flip: whether images are known to keep their labels when mirrored.
    skipped: files that could not be read, each with the reason.
    files: the file of each image, of the training part first, then of the test part; empty where images do
      not lie in files of their own.
    """

    x_train: Array
    y_train: Array
    x_test: Array | None = None
    y_test: Array | None = None
    classes: tuple[str, ...] | None = None
    flip: bool = False
    skipped: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def image_tensor(x: Array, *, who: str) -> Array:
    """Images [N, H, W] or [N, H, W, C] as a new array [N, C, H, W] of uint8 or finite float32.

    Integers of any width are taken as uint8 when all lie in 0..255; floats keep their scale.
    """
    if x.ndim not in (3, 4):
        hint = "; features [N, F] are images of one row: x[:, None]" if x.ndim == 2 else ""
        raise DataError(f"{who} has shape {x.shape}, but must be [N, H, W] or [N, H, W, C]{hint}")
    if 0 in x.shape:
        raise DataError(f"{who} is empty: its shape is {x.shape}; give it images")
    if x.ndim == 3:
        x = x[..., None]
    return np.array(_pixels(x, who=who).transpose(0, 3, 1, 2), order="C")


def _pixels(x: Array, *, who: str) -> Array:
    if x.dtype.kind in "iu":
        low, high = int(x.min()), int(x.max())
        if low < 0 or high > 255:
            raise DataError(
                f"{who} holds integers from {low} to {high}, but integer pixels must be in 0..255; "
                "convert them to floats of the scale you want"
            )
        return x.astype(np.uint8, copy=False)
    if x.dtype.kind != "f":
        raise DataError(
            f"{who} has dtype {x.dtype}, but images must be uint8 or float; use x.astype('float32')"
        )
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused below
        x = x.astype(np.float32, copy=False)
    bad = ~np.isfinite(x)
    if bad.any():
        image, row, column, channel = np.unravel_index(int(bad.argmax()), bad.shape)
        raise DataError(
            f"{who} has {int(bad.sum())} pixels that are NaN or infinite, the first at image {image}, "
            f"row {row}, column {column}, channel {channel}; repair or remove these images"
        )
    return x


def encode_labels(
    y: Array, *, who: str, classes: Sequence[str] | None = None
) -> tuple[Labels, tuple[str, ...]]:
    """Labels [N] as int64 in 0..C-1, and the names of the C classes.

    y: whole numbers 0..C-1, or class names. Without `classes`, names are sorted and numbers name themselves.
    """
    if y.ndim != 1 or not len(y):
        hint = "; of one-hot rows use y.argmax(1), of a column y.ravel()" if y.ndim == 2 else ""
        raise DataError(f"{who} has shape {y.shape}, but must be [N], one label for each image{hint}")
    if classes is not None and len(set(classes)) != len(classes):
        raise DataError(f"{who}: the class names {', '.join(classes)} are not all different; rename one")
    if y.dtype.kind in "US":
        return _from_names(y.astype(str), who=who, classes=classes)
    numbers = _whole_numbers(y, who=who)
    names = tuple(classes) if classes is not None else tuple(map(str, range(len(np.unique(numbers)))))
    outside = (numbers < 0) | (numbers >= len(names))
    if outside.any():
        values = ", ".join(map(str, np.unique(numbers[outside])[:5]))
        raise DataError(
            f"{who}: {int(outside.sum())} of {len(y)} labels are outside 0..{len(names) - 1} (as {values}); "
            "number the classes from 0 without gaps, or use class names as labels"
        )
    return numbers, names


def _from_names(y: Array, *, who: str, classes: Sequence[str] | None) -> tuple[Labels, tuple[str, ...]]:
    present, positions = np.unique(y, return_inverse=True)
    names = tuple(classes) if classes is not None else tuple(map(str, present))
    index = {name: number for number, name in enumerate(names)}
    for name in map(str, present):
        if name not in index:
            raise DataError(f"{who}: {unknown('class', name, names)}")
    return np.array([index[str(name)] for name in present], np.int64)[positions], names


def _whole_numbers(y: Array, *, who: str) -> Labels:
    if y.dtype.kind in "biu":
        return y.astype(np.int64)
    if y.dtype.kind != "f":
        raise DataError(
            f"{who} has dtype {y.dtype}, but labels must be whole numbers or strings; "
            "use y.astype(int) or y.astype(str)"
        )
    bad = ~(np.isfinite(y) & (np.floor(y) == y) & (np.abs(y) < _LARGEST_WHOLE_FLOAT))
    if bad.any():
        first = int(bad.argmax())
        words = "NaN" if np.isnan(y[first]) else str(y[first])
        raise DataError(
            f"{who}: {int(bad.sum())} of {len(y)} labels are not whole numbers, the first at {first} is "
            f"{words}; number the classes from 0"
        )
    return y.astype(np.int64)


def as_numpy(values: Array | Tensor | Sequence[Any], *, who: str = "arrays") -> Array:
    """A tensor, array or list as a numpy array of the same layout.

    Raises:
        DataError: when the parts of a list differ in shape.
    """
    if not isinstance(values, Tensor):
        try:
            return np.asarray(values)
        except ValueError as error:
            raise DataError(
                f"{who} is a {type(values).__name__} whose {len(values)} parts differ in shape, but all must "
                "have one; resize or crop the images first, or put them into folders and give folder:DIR@64"
            ) from error
    values = values.detach().cpu()
    # numpy has no bfloat16 and no 8-bit floats.
    return (values.float() if values.is_floating_point() else values).numpy()


def channels_last(x: Array, *, who: str) -> Array:
    """Images of a user's array as they are; refuses those that look as if the channels came first."""
    if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[3] > 4:
        raise DataError(
            f"{who} has shape {x.shape}, which looks like [N, C, H, W], but numpy images are [N, H, W, C]; "
            "use x.transpose(0, 2, 3, 1) or pass a torch tensor"
        )
    return x


def images_as_numpy(x: Array | Tensor | Sequence[Any], *, who: str) -> Array:
    """Images in numpy's layout, [N, H, W] or [N, H, W, C]; a tensor comes as [N, H, W] or [N, C, H, W]."""
    if not isinstance(x, Tensor) or x.ndim != 4:
        return channels_last(as_numpy(x, who=who), who=who)
    if x.shape[3] in (1, 3) and x.shape[1] > 4:
        raise DataError(
            f"{who} has shape {tuple(x.shape)}, which looks like [N, H, W, C], but image tensors are "
            "[N, C, H, W]; use x.permute(0, 3, 1, 2) or pass a numpy array"
        )
    return as_numpy(x.permute(0, 2, 3, 1), who=who)


_PART = 4096  # images that are resized at a time


def shrunk(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [N, C, H, W] at another size, same type, a part at a time to keep the float copy small."""
    parts = [F.interpolate(part.float(), size, mode="area") for part in torch.split(x, _PART)]
    return torch.cat([part.round().to(x.dtype) if x.dtype == torch.uint8 else part for part in parts])


def usual_padding(side: int) -> int:
    """4 from 32 pixels on, as usual for CIFAR; less for smaller images: 2 at 28, 1 at 8."""
    return 4 if side >= 32 else max(1, side // 12)


def digest(image: Array) -> bytes:
    """What stands for an image's pixels, 16 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
