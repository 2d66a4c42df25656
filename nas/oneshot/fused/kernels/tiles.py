"""Tiles: how programs share out the pixels and channels of maps [P, C], and sums over pixels."""

from __future__ import annotations

from typing import Any

TILE = 1024
"""Numbers of a map in a tile, pixels times channels: eight for each thread, which are read at once."""
LOOP = 16
"""Tiles that one program of a sum over pixels adds up, at most."""
WIDEST = 64
"""Channels in a tile of a product of matrices, at most."""
SHARE, PARTS = 2**12, 64
"""Numbers of a map for each part of a gradient of weights, about; parts, at most."""


def tile_of(channels: int) -> dict[str, int]:
    """Pixels and channels in a tile of a program without products of matrices."""
    width = min(128, power(channels))
    return {"BP": max(16, TILE // width), "BC": width}


def dot_tile_of(inputs: int, outputs: int) -> dict[str, int]:
    """Pixels, and channels in and out, in a tile of a program with products of matrices."""
    wide = _power_of_dot(inputs), _power_of_dot(outputs)
    return {"BP": max(16, 2 * TILE // max(wide)), "BI": wide[0], "BO": wide[1]}


def _power_of_dot(size: int) -> int:
    """Products of matrices want at least 16 in each direction."""
    return min(WIDEST, max(16, power(size)))


def tickets_of(channels: int) -> int:
    """Tiles of channels in which sums over pixels are made, at most; each has a ticket, see `blocks`."""
    return cdiv(channels, WIDEST)


def blocks_of(pixels: int, tile: dict[str, Any]) -> tuple[int, int]:
    """Blocks of a sum over pixels, and tiles in each."""
    tiles = cdiv(pixels, tile["BP"])
    return cdiv(tiles, LOOP), min(tiles, LOOP)


def parts_of(pixels: int, channels: int) -> int:
    """In how many parts a gradient of weights is summed over so many pixels."""
    return min(PARTS, cdiv(pixels * channels, SHARE))


def grid_of(pixels: int, channels: int, groups: int, tile: dict[str, Any]) -> tuple[int, int, int]:
    """Tiles of pixels, of channels, and groups."""
    return cdiv(pixels, tile["BP"]), cdiv(channels, tile["BC"]), groups


def power(size: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << (size - 1).bit_length()


def cdiv(size: int, part: int) -> int:
    """How many parts it takes."""
    return -(-size // part)
