"""Images in files and uploads, read by Pillow. Nothing here needs torch."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from nas.data.arrays import Array

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may read: it goes by the content, and would hand PostScript under any name to Ghostscript."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError)
"""What Pillow raises on damaged files."""
DEEP = frozenset(("I", "I;16", "I;16B", "I;16L", "I;16N", "F"))
"""Modes of more than 8 bits a pixel: what to do with them is the user's choice."""
MOST_PIXELS = 40_000_000
"""Of an image that is shrunk to what a network takes; its colours are 120 MB."""
GREY = frozenset(("1", "L", "LA"))
"""Modes without colours, of up to 8 bits."""


def pil_pixels(image: Image) -> Array:
    """Pixels of a Pillow image: [H, W] if grey, else [H, W, 3]; transparency is dropped."""
    if image.mode in DEEP:
        return np.asarray(image)
    return np.asarray(_plain(image, "L" if image.mode in GREY else "RGB"))


def fitted(data: bytes, shape: tuple[int, int, int]) -> Array:
    """The first frame of an encoded image as uint8 `[C, H, W]`, C 1 or 3.

    It is turned upright as its EXIF data say, made grey or colour, and stretched to H and W.

    Raises:
        ValueError: in words, when this is no image, is damaged, or has too many pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"it has {image.width}x{image.height} pixels, but at most {MOST_PIXELS:,} in all are read"
                )
            if image.mode in DEEP:
                raise ValueError("it has more than 8 bits a pixel; convert it to 8")
            upright = ImageOps.exif_transpose(image)
            plain = _plain(upright, "L" if channels == 1 else "RGB")
            pixels = np.asarray(plain.resize((width, height), Image.Resampling.BILINEAR))
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has too many pixels: at most {MOST_PIXELS:,} are read") from error
    except DAMAGE as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def picture_pixels(data: bytes) -> int:
    """How many pixels an encoded image has, by its head; 0 where it is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except (*DAMAGE, Image.DecompressionBombError):
        return 0


def _plain(image: Image, mode: str) -> Image:
    if "transparency" in image.info:  # Pillow warns when a palette with transparency becomes RGB at once
        image = image.convert("RGBA")
    return image.convert(mode)
