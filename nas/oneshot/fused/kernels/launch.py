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
"""Tiles that one program of a gradient of weights adds up."""


def depthwise(source: Source, weight: Tensor, window: Window) -> Tensor:
    """`weight` [G, K * K, C] to maps [G, P, C]."""
    groups, _, channels = weight.shape
    out = source.x.new_empty(groups, window.outputs, channels)
    tile = _tile(channels)
    mean, inv = source.statistics(weight)
    programs.depthwise_forward[_grid(window.outputs, channels, groups, tile)](
        source.x, source.group, mean, inv, weight, out, window.outputs, channels,
        **window.sizes(), DILATION=window.dilation, PRE=source.pre, **tile,
    )  # fmt: skip
    return out


def depthwise_gradients(
    grad: Tensor, source: Source, weight: Tensor, window: Window, *, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of what the source's ReLU or batch-norm gets, and of the kernels; as far as wanted."""
    groups, taps, channels = weight.shape
    tile, (mean, inv) = _tile(channels), source.statistics(weight)
    sizes = {**window.sizes(), "DILATION": window.dilation, "PRE": source.pre}
    dx = dw = None
    if wanted[0]:
        together = groups if source.group == 0 else 1
        dx = source.x.new_empty(groups // together, window.inputs, channels)
        programs.depthwise_input_gradient[_grid(window.inputs, channels, groups // together, tile)](
            grad, weight, source.x, source.group, mean, dx, together, window.outputs, window.inputs, channels,
            **sizes, **tile,
        )  # fmt: skip
    if wanted[1]:
        blocks = _cdiv(window.outputs, tile["BP"] * LOOP)
        part = weight.new_empty(groups, blocks, taps, channels, dtype=torch.float32)
        programs.depthwise_weight_gradient[blocks, taps * _cdiv(channels, tile["BC"]), groups](
            source.x, source.group, mean, inv, grad, part, window.outputs, channels, blocks,
            **sizes, LOOP=LOOP, **tile,
        )  # fmt: skip
        dw = part.sum(1)
    return dx, dw


def convolve(source: Source, weight: Tensor, window: Window, eps: float) -> tuple[Tensor, Norm]:
    """`weight` [G, K * K, I, O] to maps [G, P, O], with their statistics."""
    groups, _, inputs, outputs = weight.shape
    tile = _dot_tile(inputs, outputs)
    pixels, blocks = window.outputs, _cdiv(window.outputs, tile["BP"])
    out = source.x.new_empty(groups, pixels, outputs)
    part = weight.new_empty(groups, blocks, 2, outputs, dtype=torch.float32)
    programs.convolve_forward[blocks, _cdiv(outputs, tile["BO"]), groups](
        source.x, source.group, weight, out, part, pixels, blocks, inputs, outputs,
        **window.sizes(), PRE=source.pre, **tile,
    )  # fmt: skip
    return out, _combined(part, pixels, tile["BP"], eps)


def _combined(part: Tensor, pixels: int, block: int, eps: float) -> Norm:
    """Statistics of all blocks together."""
    groups, blocks, _, channels = part.shape
    mean, var, inv = part.new_empty(3, groups, channels)
    width = min(128, _power(channels))
    programs.moments[_cdiv(channels, width), groups](
        part, mean, var, inv, eps, pixels, channels, BLOCKS=blocks, BLOCK=block, BC=width
    )
    return Norm(mean, var, inv)


def convolve_gradients(
    grad: Tensor, source: Source, weight: Tensor, window: Window, *, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of what the source's ReLU gets, and of the kernels; as far as wanted."""
    groups, taps, inputs, outputs = weight.shape
    tile = _dot_tile(inputs, outputs)
    sizes = {**window.sizes(), "PRE": source.pre}
    dx = dw = None
    if wanted[0]:
        together = groups if source.group == 0 else 1
        dx = source.x.new_empty(groups // together, window.inputs, inputs)
        grid = (_cdiv(window.inputs, tile["BP"]), _cdiv(inputs, tile["BI"]), groups // together)
        programs.convolve_input_gradient[grid](
            grad, weight, source.x, source.group, dx, together, window.outputs, window.inputs,
            inputs, outputs, **sizes, **tile,
        )  # fmt: skip
    if wanted[1]:
        blocks = _cdiv(window.outputs, tile["BP"] * LOOP)
        part = weight.new_empty(groups, blocks, taps, inputs, outputs, dtype=torch.float32)
        tiles = taps * _cdiv(inputs, tile["BI"]) * _cdiv(outputs, tile["BO"])
        programs.convolve_weight_gradient[blocks, tiles, groups](
            source.x, source.group, grad, part, window.outputs, blocks, inputs, outputs,
            **sizes, LOOP=LOOP, **tile,
        )  # fmt: skip
        dw = part.sum(1)
    return dx, dw


def normalise(y: Tensor, norm: Norm, scale: Tensor | None) -> Tensor:
    """`y` [G, P, C] by its statistics, times `scale` [G]."""
    groups, pixels, channels = y.shape
    out, tile = torch.empty_like(y), _tile(channels)
    programs.normalise[_grid(pixels, channels, groups, tile)](
        y, norm.mean, _factor(norm, scale), out, pixels, channels, **tile
    )
    return out


def norm_gradients(grad: Tensor, y: Tensor, norm: Norm, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of `y` [G, P, C], and of the scale [G]."""
    groups, pixels, channels = y.shape
    tile = _tile(channels)
    blocks = _cdiv(pixels, tile["BP"] * LOOP)
    part = y.new_empty(groups, blocks, 2, channels, dtype=torch.float32)
    programs.sums[blocks, _cdiv(channels, tile["BC"]), groups](
        grad, y, norm.mean, norm.inv, part, pixels, channels, blocks, LOOP=LOOP, **tile
    )
    total, out = part.sum(1), torch.empty_like(y)
    programs.norm_gradient[_grid(pixels, channels, groups, tile)](
        grad, y, norm.mean, norm.inv, _factor(norm, scale), total, out, pixels, channels, **tile
    )
    return out, total[:, 1].sum(1)


def _factor(norm: Norm, scale: Tensor | None) -> Tensor:
    return norm.inv if scale is None else norm.inv * scale.float()[:, None]


def _tile(channels: int) -> dict[str, int]:
    width = min(128, _power(channels))
    return {"BP": max(16, TILE // width), "BC": width}


def _dot_tile(inputs: int, outputs: int) -> dict[str, int]:
    """Products of matrices want at least 16 in each direction."""
    wide = [min(64, max(16, _power(size))) for size in (inputs, outputs)]
    return {"BP": max(16, 2 * TILE // max(wide)), "BI": wide[0], "BO": wide[1]}


def _power(size: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << (size - 1).bit_length()


def _cdiv(size: int, part: int) -> int:
    return -(-size // part)


def _grid(pixels: int, channels: int, groups: int, tile: dict[str, Any]) -> tuple[int, int, int]:
    return _cdiv(pixels, tile["BP"]), _cdiv(channels, tile["BC"]), groups
