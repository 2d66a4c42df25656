"""Reader of map-style data sets: anything with a length that gives (image, label) for an index."""

from __future__ import annotations

import sys
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from nas.data.arrays import Array, as_numpy, channels_last
from nas.data.image_io import pil_pixels
from nas.errors import FAULTS, DataError, describe


@runtime_checkable
class MapDataset(Protocol):
    """A map-style data set of (image, label), read by index from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


def collect(dataset: MapDataset, *, who: str) -> tuple[Array, Array]:
    """All images [N, H, W] or [N, H, W, C] and labels [N], read once in order."""
    if not isinstance(dataset, MapDataset):
        raise DataError(
            f"{who} is a {type(dataset).__name__}, wanted a data set with a length that is read by index; of "
            "a DataLoader give its `dataset`, of what can only be gone through, `list(...)` of it"
        )
    images: list[Array] = []
    labels: list[object] = []
    for index in range(len(dataset)):
        item = _item(dataset, index, who=who)
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{who}: item {index} is a {type(item).__name__}, but must be (image, label)")
        pixels = _pixels(item[0], who=f"{who}: item {index}")
        if images and pixels.shape != images[0].shape:
            raise DataError(
                f"{who}: images differ in size or channels: item 0 is {images[0].shape}, item {index} is "
                f"{pixels.shape}; bring all to one [H, W] or [H, W, C]"
            )
        images.append(pixels)
        labels.append(as_numpy(item[1]) if isinstance(item[1], Tensor) else item[1])
    if not images:
        raise DataError(f"{who} is empty; give at least two images of each class")
    return np.array(images), np.array(labels)


def _item(dataset: MapDataset, index: int, *, who: str) -> object:
    try:
        return dataset[index]
    except FAULTS as error:
        raise DataError(
            f"{who}: item {index} cannot be read: {describe(error)}; repair it, or leave it out"
        ) from error


def _pixels(image: object, *, who: str) -> Array:
    if isinstance(image, Tensor):
        return as_numpy(image.permute(1, 2, 0) if image.ndim == 3 else image)
    if isinstance(image, np.ndarray):
        channels_last(image[None], who=who)
        return image
    pillow = sys.modules.get("PIL.Image")  # whoever made a Pillow image has loaded Pillow
    if pillow is not None and isinstance(image, pillow.Image):
        return pil_pixels(image)
    raise DataError(
        f"{who} has a {type(image).__name__} as image, but must have a Pillow image, an array or a tensor"
    )
