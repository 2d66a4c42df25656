"""Arrays and images in files from outside: nothing is unpickled, and no more is unpacked than was allowed.

A few kilobytes can unpack to gigabytes, and an array's header can ask for more memory than there is.
Servers read uploads by it, so nothing here needs torch.
"""

from __future__ import annotations

import gzip
import io
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING

import numpy as np

from nas.errors import printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from nas.data.arrays import Array

_DAMAGE = (
    *(OSError, EOFError, LZMAError, MemoryError, NotImplementedError, OverflowError, RecursionError),
    *(RuntimeError, SyntaxError, TokenError, TypeError, ValueError, zipfile.BadZipFile, zlib.error),
)
"""What the readers of the standard library, of numpy and of Pillow raise on damaged files."""


NPY = np.lib.format.MAGIC_PREFIX
"""What an .npy file begins with."""


def half_of_memory() -> int:
    """Bytes that unpacked data may take."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def load_arrays(
    path: Path, names: Sequence[str], *, max_bytes: int | None = None
) -> tuple[dict[str, Array], list[str]]:
    """The arrays of these names that an .npz file holds, and the names of all that it holds.

    max_bytes: of the unpacked arrays together; half of the machine's memory unless given.

    Raises:
        ValueError: in words, for anything that is no such file, is damaged, or would unpack to more.
    """
    limit = half_of_memory() if max_bytes is None else max_bytes
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy and Python about a header that only looks like one
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = {name: members[name] for name in names if name in members}
            size = sum(info.file_size for info in wanted.values())
            if size > limit:
                raise ValueError(f"its arrays unpack to {size:,} bytes, but at most {limit:,} are allowed")
            found = {}
            for name, info in wanted.items():
                with archive.open(info) as member:
                    found[name] = _array(member, info.filename)
            return found, list(members)
    except FileNotFoundError as error:
        raise ValueError(f"no such file (looked from {Path.cwd()})") from error
    except _DAMAGE as error:
        raise ValueError(_words(error)) from error


def array_of(data: bytes) -> Array:
    """The array in the bytes of an .npy file.

    Raises:
        ValueError: in words, for anything that is no such file or is damaged.
    """
    try:  # without other filters of warnings, which threads share
        return _array(io.BytesIO(data), "the file")
    except _DAMAGE as error:
        raise ValueError(_words(error)) from error


def _array(file: IO[bytes], name: str) -> Array:
    """What a header promises beyond the bytes that follow is never touched, and so takes no memory."""
    array: Array = np.lib.format.read_array(file, allow_pickle=False)
    # To read on also compares an archive's checksum. Elements without bytes could be any number.
    if file.read(1) or (array.size and not array.itemsize):
        raise ValueError(f"{name} holds other bytes than those of its shape {array.shape}")
    return array


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """A file's content, unpacked where its name ends in .gz.

    Raises:
        ValueError: in words, when it cannot be read or has more than `max_bytes`.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except _DAMAGE as error:
        raise ValueError(_words(error)) from error
    if len(data) > max_bytes:
        raise ValueError(f"it has more than the {max_bytes:,} bytes that are allowed")
    return data


def _words(error: BaseException) -> str:
    """What went wrong, in one short line."""
    return printable(str(error).replace("\n", " ") or type(error).__name__, limit=200)


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may read: it goes by the content, and would hand PostScript under any name to Ghostscript."""
SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""What the names of image files in a folder end in."""
GREY = frozenset(("1", "L", "LA"))
"""Modes without colours, of up to 8 bits a pixel."""
DEEP = frozenset(("I", "I;16", "I;16B", "I;16L", "I;16N", "F"))
"""Modes of more than 8 bits a pixel: what to do with them is the user's choice."""
MOST_PIXELS = 40_000_000
"""Of one image; its colours are 120 MB."""


@contextmanager
def open_image(file: Path | IO[bytes]) -> Iterator[Image]:
    """The first frame of an encoded image, whose pixels are read in the block.

    Raises:
        ValueError: in words, when this is no image, is damaged, or has more than `MOST_PIXELS`.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"it has {image.width}x{image.height} pixels, but at most {MOST_PIXELS:,} in all are read"
                )
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def pil_pixels(image: Image) -> Array:
    """Pixels of a Pillow image: [H, W] if grey, else [H, W, 3]; transparency is dropped."""
    if image.mode in DEEP:
        return np.asarray(image)
    return np.asarray(_plain(image, "L" if image.mode in GREY else "RGB"))


def fitted(data: bytes, shape: tuple[int, int, int]) -> Array:
    """An encoded image as uint8 `[C, H, W]`, C 1 or 3.

    It is turned upright as its EXIF data say, made grey or colour, and stretched to H and W.

    Raises:
        ValueError: as `open_image`, or when it has more than 8 bits a pixel.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    with open_image(io.BytesIO(data)) as image:
        if image.mode in DEEP:
            raise ValueError("it has more than 8 bits a pixel; convert it to 8")
        plain = _plain(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
        pixels = np.asarray(plain.resize((width, height), Image.Resampling.BILINEAR))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def picture_pixels(data: bytes) -> int:
    """How many pixels an encoded image has, by its head; 0 where it is none that is read."""
    try:
        with open_image(io.BytesIO(data)) as image:
            return image.width * image.height
    except ValueError:
        return 0


def _plain(image: Image, mode: str) -> Image:
    if "transparency" in image.info:  # Pillow warns when a palette with transparency becomes RGB at once
        image = image.convert("RGBA")
    return image.convert(mode)
