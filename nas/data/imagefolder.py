"""Reader of image folders: one sub-folder for each class, optionally under train/ and test/."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from nas.data.arrays import Array, Source, as_numpy, channels_last
from nas.data.image_io import DAMAGE, DEEP, FORMATS, GREY, fitted, pil_pixels
from nas.errors import FAULTS, DataError, describe
from nas.files.paths import exists

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""What the names of image files in a folder end in."""
_LARGEST_CORRUPT_SHARE = 0.01


@dataclass
class _Reading:
    """Images read so far; the first one sets the shape that all must have.

    into: (C, H, W) that every image is brought to, None for images that have one size as they are.
    lenient: whether an image of another shape is skipped, too, like one that cannot be read.
    """

    root: Path
    into: tuple[int, int, int] | None = None
    lenient: bool = False
    first: tuple[Path, tuple[int, ...]] | None = None
    files: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seen: int = 0

    def part(self, folder: Path) -> tuple[Array, Array]:
        """Pixels and class names of all images in the class folders of `folder`."""
        images, names = [], []
        for class_folder in _class_folders(folder):
            files = _images(class_folder)
            if not files:
                raise DataError(
                    f"folder:{class_folder} has no images ({', '.join(sorted(SUFFIXES))}); "
                    "add some or remove the folder"
                )
            for file in files:
                pixels = self._read(file)
                if pixels is not None:
                    images.append(pixels)
                    names.append(class_folder.name)
                    self.files.append(file.relative_to(self.root).as_posix())
        return np.array(images), np.array(names, np.str_)

    def _read(self, file: Path) -> Array | None:
        self.seen += 1
        try:
            pixels = _decode(file) if self.into is None else _stretched(file, self.into)
        except DAMAGE as error:
            self.skipped.append(f"{file.relative_to(self.root)}: {error}")
            return None
        if self.first is None:
            self.first = file, pixels.shape
        first_file, shape = self.first
        if pixels.shape != shape and self.lenient:
            self.skipped.append(
                f"{file.relative_to(self.root)}: it is {_size(pixels.shape)}, but most are {_size(shape)}"
            )
            return None
        if pixels.shape != shape:
            raise DataError(
                f"folder:{self.root}: images differ in size or channels: {first_file} is {_size(shape)}, "
                f"{file} is {_size(pixels.shape)}; bring all to one size and colour mode, or let them be "
                f"stretched to one: folder:{self.root}@32"
            )
        return pixels


def _decode(file: Path) -> Array:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # odd metadata beside good pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            if not file.is_file():  # a pipe would never end
                raise ValueError("not a regular file")
            with Image.open(file, formats=FORMATS) as image:
                return pil_pixels(image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(str(error)) from error


def _stretched(file: Path, shape: tuple[int, int, int]) -> Array:
    """The image as `nas predict` takes it for a network of this shape (C, H, W)."""
    if not file.is_file():  # a pipe would never end
        raise ValueError("not a regular file")
    pixels = fitted(file.read_bytes(), shape)
    return pixels[0] if shape[0] == 1 else pixels.transpose(1, 2, 0)


def _channels(root: Path) -> int:
    """1 where no image has colours, else 3; only their heads are read."""
    from PIL import Image

    for file in _images(root):
        with suppress(*DAMAGE, Image.DecompressionBombError), Image.open(file, formats=FORMATS) as image:
            if image.mode not in GREY | DEEP:
                return 3
    return 1


def read_folder(root: Path, *, size: tuple[int, int] | None = None, lenient: bool = False) -> Source:
    """Reads PATH/CLASS/IMAGE, or PATH/train/CLASS/IMAGE and PATH/test/CLASS/IMAGE, with Pillow.

    Up to 1 % of the images may be corrupt: they are left out and listed in `Source.skipped`.

    size: (width, height) that all images are stretched to, turned upright as their EXIF data say, and made
        colour where any of them is; without it all must have one size and colour mode.
    lenient: leave out and list any number of them, and all images that differ from most in size or channels.
    """
    if not exists(root) or not root.is_dir():
        sized = "; a size to stretch images to is written as @64 or @64x48" if "@" in root.name else ""
        raise DataError(f"folder:{root}: no such folder (looked from {Path.cwd()}){sized}")
    _require_pillow(root)
    divided = (root / "train").is_dir()
    train, test = (root / "train", root / "test") if divided else (root, None)
    into = None if size is None else (_channels(root), size[1], size[0])
    reading = _Reading(root, into, lenient, _commonest(root) if lenient and into is None else None)
    x_train, y_train = reading.part(train)
    x_test, y_test = reading.part(test) if test is not None and test.is_dir() else (None, None)
    if not lenient or not reading.files:
        _check_skipped(reading)
    unused = [folder.name for folder in _folders(root) if divided and folder not in (train, test)]
    return Source(
        x_train,
        y_train,
        x_test,
        y_test,
        classes=tuple(folder.name for folder in _class_folders(train)),
        skipped=tuple(reading.skipped),
        notes=tuple(f"{name}/ beside train/ is not used" for name in unused),
        files=tuple(reading.files),
    )


def _commonest(root: Path) -> tuple[Path, tuple[int, ...]] | None:
    """The shape that most of the images have, and the first of these."""
    found: dict[tuple[int, ...], list[Path]] = {}
    for file in _images(root):
        with suppress(*DAMAGE):
            found.setdefault(_decode(file).shape, []).append(file)
    if not found:
        return None
    shape = max(found, key=lambda shape: len(found[shape]))
    return found[shape][0], shape


def _require_pillow(root: Path) -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"folder:{root} needs Pillow to read images; install it with: pip install 'nas-engine[vision]'"
        ) from error


def _check_skipped(reading: _Reading) -> None:
    if len(reading.skipped) > _LARGEST_CORRUPT_SHARE * reading.seen:
        raise DataError(
            f"folder:{reading.root}: {len(reading.skipped)} of {reading.seen} images cannot be read, "
            f"but at most {_LARGEST_CORRUPT_SHARE:.0%} may be ({'; '.join(reading.skipped[:3])}); "
            "repair or remove them"
        )


def _images(root: Path) -> list[Path]:
    return sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES)


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_folders(path: Path) -> list[Path]:
    folders = _folders(path)
    if not folders:
        raise DataError(f"folder:{path} has no sub-folders; put the images of each class into one of its own")
    return folders


def _size(shape: tuple[int, ...]) -> str:
    """The size as people say it: width x height, then the channels."""
    height, width, *channels = shape
    return f"{width}x{height} {'colour' if channels else 'grey'}"


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
