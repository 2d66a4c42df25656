"""Files from users as the pixels that a model takes: image files and arrays, each checked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.data.image_io import FORMATS, fitted
from nas.data.safe_npz import NPY, array_of
from nas.errors import DataError
from nas.export.serving.served import Served
from nas.text import printable

Pixels = NDArray[np.float32]
_BYTE = np.float32(255)


def pixels_of(name: str, data: bytes, served: Served) -> Pixels:
    """The images of a file as float32 `[N, C, H, W]`, as the exported forms take them.

    data: an image, or an .npy array as `array_pixels` takes it.

    Raises:
        DataError: saying what is wrong with which file, and what was wanted.
    """
    what = printable(name, limit=100)
    if not data:
        raise DataError(f"{what} is empty; wanted an image ({', '.join(FORMATS)}) or an .npy array")
    if data.startswith(NPY):
        try:
            array = array_of(data)
        except ValueError as error:
            raise DataError(f"{what} is no whole .npy array: {error}") from error
        return array_pixels(what, array, served)
    if not served.takes_files:
        raise DataError(f"{what}: this model takes {served.steps}; send an .npy array")
    try:
        return fitted(data, served.image_shape)[None].astype(np.float32) / _BYTE
    except ValueError as error:
        raise DataError(
            f"{what} cannot be read as an image: {printable(str(error), limit=200)}; wanted a whole "
            f"{', '.join(FORMATS)} file or an .npy array"
        ) from error


def array_pixels(name: str, array: NDArray[np.generic], served: Served) -> Pixels:
    """Images of the model's size as float32 `[N, C, H, W]`.

    array: one image or several, `[H, W]`, `[H, W, C]`, `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`; bytes,
      or floats of the scale that the training images had.

    Raises:
        DataError: when the shape, the type or the range is another.
    """
    channels, height, width = served.image_shape
    shape, wanted = array.shape, (height, width, channels)
    if channels == 1 and shape in ((height, width), (shape[0] if shape else 0, height, width)):
        images = array.reshape(-1, 1, height, width)
    elif shape == wanted or (len(shape) == 4 and shape[1:] == wanted):
        images = array.reshape(-1, *wanted).transpose(0, 3, 1, 2)
    elif len(shape) == 4 and shape[1:] == served.image_shape:
        images = array
    else:
        several = f"[N, {height}, {width}]" if channels == 1 else f"[N, {height}, {width}, {channels}]"
        raise DataError(f"{name} has shape {list(shape)}, wanted {several} or one image of that size")
    if not len(images):
        raise DataError(f"{name} holds no image: its shape is {list(shape)}")
    return _scaled(name, images, served)


def _scaled(name: str, images: NDArray[np.generic], served: Served) -> Pixels:
    kind = images.dtype.kind
    if kind not in "iuf":
        raise DataError(f"{name} has type {images.dtype}, wanted bytes or floats")
    low, high = float(images.min()), float(images.max())
    if not abs(low) + abs(high) < float(np.finfo(np.float32).max):
        raise DataError(f"{name} holds NaN or infinite pixels; repair or remove these images")
    if served.pixels == "float32":
        if kind != "f":
            raise DataError(f"{name} has type {images.dtype}, wanted floats of the training images' scale")
        return images.astype(np.float32)
    most = 1 if kind == "f" else 255
    if low < 0 or high > most:
        wanted = "floats from 0 to 1" if kind == "f" else "integers from 0 to 255"
        raise DataError(f"{name} has pixels from {low:g} to {high:g}, wanted {wanted}")
    pixels = images.astype(np.float32)
    return pixels if kind == "f" else pixels / _BYTE
