"""Launches of the programs: tiles, grids, and the sums over blocks that they leave to the caller."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nas.oneshot.fused.kernels import programs
from nas.oneshot.fused.kernels.maps import Norm, Source, Window

TILE = 2048
"""Numbers of a map in a tile of a depthwise or pointwise kernel: pixels times channels."""
LOOP = 8
"""Tiles that one program of a sum over pixels adds up, at most."""


def depthwise(source: Source, weight: Tensor, window: Window) -> Tensor:
    """`weight` [G, K * K, C] to maps [G, P, C]."""
    groups, _, channels = weight.shape
    out = source.x.new_empty(groups, window.outputs, channels)
    tile = tile_of(channels)
    mean, inv = source.statistics(weight)
    programs.depthwise_forward[grid_of(window.outputs, channels, groups, tile)](
        source.x, source.group, mean, inv, weight, out, source.flags(out), window.outputs, channels,
        **_sizes(source, window), DILATION=window.dilation, **tile,
    )  # fmt: skip
    return out


def depthwise_gradients(
    grad: Tensor, source: Source, weight: Tensor, window: Window, *, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of what the source's ReLU or batch-norm gets, and of the kernels; as far as wanted."""
    groups, taps, channels = weight.shape
    tile, (mean, inv) = tile_of(channels), source.statistics(weight)
    sizes = {**_sizes(source, window), "DILATION": window.dilation}
    dx = dw = None
    if wanted[0]:
        together = groups if source.group == 0 else 1
        dx = source.x.new_empty(groups // together, window.inputs, channels)
        programs.depthwise_input_gradient[grid_of(window.inputs, channels, groups // together, tile)](
            grad, weight, source.x, source.group, mean, dx, source.flags(dx), together, window.outputs,
            window.inputs, channels, **sizes, **tile,
        )  # fmt: skip
    if wanted[1]:
        blocks, loop = blocks_of(window.outputs, tile)
        part = weight.new_empty(groups, blocks, taps, channels, dtype=torch.float32)
        programs.depthwise_weight_gradient[blocks, taps * cdiv(channels, tile["BC"]), groups](
            source.x, source.group, mean, inv, grad, part, source.flags(part), window.outputs, channels,
            blocks, **sizes, LOOP=loop, **tile,
        )  # fmt: skip
        dw = part.sum(1)
    return dx, dw


def convolve(
    source: Source, weight: Tensor, window: Window, *, out: Tensor, part: Tensor, block: int
) -> None:
    """`weight` [G, K * K, I, O] to `out` [G, P, O], with the moments of each block of so many pixels.

    part: [G, blocks, 2, O] of the moments.
    """
    groups, _, inputs, outputs = weight.shape
    tile = {**_dot_tile(inputs, outputs), "BP": block}
    programs.convolve_forward[part.shape[1], cdiv(outputs, tile["BO"]), groups](
        source.x, source.group, weight, out, part, source.flags(part), window.outputs, part.shape[1], inputs,
        outputs, **_sizes(source, window), **tile,
    )  # fmt: skip


def moments(groups: int, pixels: int, channels: int, block: int, device: torch.device) -> Tensor:
    """Room for the moments of each block of so many pixels, `[G, blocks, 2, C]`."""
    return torch.empty(groups, cdiv(pixels, block), 2, channels, device=device)


def block_of(inputs: int, outputs: int) -> int:
    """Pixels in a block of a convolution."""
    return _dot_tile(inputs, outputs)["BP"]


def statistics(part: Tensor, pixels: int, block: int, eps: float, norm: Norm) -> Norm:
    """Fills in `norm` [G, C] from the moments of all blocks."""
    groups, blocks, _, channels = part.shape
    width = min(128, power(channels))
    programs.moments[cdiv(channels, width), groups](
        part, norm.mean, norm.var, norm.inv, flags(norm.on, part), eps, pixels, channels,
        BLOCKS=blocks, BLOCK=block, ON=norm.on is not None, BC=width,
    )  # fmt: skip
    return norm


def convolve_gradients(
    grad: Tensor, source: Source, weight: Tensor, window: Window, *, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of what the source's ReLU gets, and of the kernels; as far as wanted."""
    groups, taps, inputs, outputs = weight.shape
    tile = _dot_tile(inputs, outputs)
    sizes = _sizes(source, window)
    dx = dw = None
    if wanted[0]:
        together = groups if source.group == 0 else 1
        dx = source.x.new_empty(groups // together, window.inputs, inputs)
        grid = (cdiv(window.inputs, tile["BP"]), cdiv(inputs, tile["BI"]), groups // together)
        programs.convolve_input_gradient[grid](
            grad, weight, source.x, source.group, dx, source.flags(dx), together, window.outputs,
            window.inputs, inputs, outputs, **sizes, **tile,
        )  # fmt: skip
    if wanted[1]:
        blocks, loop = blocks_of(window.outputs, tile)
        part = weight.new_empty(groups, blocks, taps, inputs, outputs, dtype=torch.float32)
        tiles = taps * cdiv(inputs, tile["BI"]) * cdiv(outputs, tile["BO"])
        programs.convolve_weight_gradient[blocks, tiles, groups](
            source.x, source.group, grad, part, source.flags(part), window.outputs, blocks, inputs, outputs,
            **sizes, LOOP=loop, **tile,
        )  # fmt: skip
        dw = part.sum(1)
    return dx, dw


def norm_gradients(grad: Tensor, y: Tensor, norm: Norm) -> Tensor:
    """Of `y` [G, P, C]."""
    groups, pixels, channels = y.shape
    tile, on = {"ON": norm.on is not None, **tile_of(channels)}, flags(norm.on, y)
    blocks, loop = blocks_of(pixels, tile)
    part = y.new_empty(groups, blocks, 2, channels, dtype=torch.float32)
    programs.sums[blocks, cdiv(channels, tile["BC"]), groups](
        grad, y, norm.mean, norm.inv, part, on, pixels, channels, blocks, LOOP=loop, **tile
    )
    out = torch.empty_like(y)
    programs.norm_gradient[grid_of(pixels, channels, groups, tile)](
        grad, y, norm.mean, norm.inv, part.sum(1), out, on, pixels, channels, **tile
    )
    return out


def flags(on: Tensor | None, otherwise: Tensor) -> Tensor:
    """Which maps are computed; where all are, anything, for it is not read."""
    return otherwise if on is None else on


def _sizes(source: Source, window: Window) -> dict[str, int]:
    return {**window.sizes(), "PRE": source.pre, "ON": source.on is not None}


def tile_of(channels: int, size: int = TILE) -> dict[str, int]:
    """Pixels and channels of a kernel without products of matrices, in a tile of so many numbers."""
    width = min(128, power(channels))
    return {"BP": max(16, size // width), "BC": width}


def _dot_tile(inputs: int, outputs: int) -> dict[str, int]:
    """Products of matrices want at least 16 in each direction."""
    wide = [min(64, max(16, power(size))) for size in (inputs, outputs)]
    return {"BP": max(16, 2 * TILE // max(wide)), "BI": wide[0], "BO": wide[1]}


def blocks_of(pixels: int, tile: dict[str, Any]) -> tuple[int, int]:
    """Blocks of a sum over pixels, and tiles in each."""
    tiles = cdiv(pixels, tile["BP"])
    return cdiv(tiles, LOOP), min(tiles, LOOP)


def power(size: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << (size - 1).bit_length()


def cdiv(size: int, part: int) -> int:
    """How many parts it takes."""
    return -(-size // part)


def grid_of(pixels: int, channels: int, groups: int, tile: dict[str, Any]) -> tuple[int, int, int]:
    """Tiles of pixels, of channels, and groups."""
    return cdiv(pixels, tile["BP"]), cdiv(channels, tile["BC"]), groups
