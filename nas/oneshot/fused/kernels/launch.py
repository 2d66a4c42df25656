"""Launches of convolutions, and of the batch-norms between them: grids, and room for outcomes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from nas.oneshot.fused.kernels.maps import Drawn, Norm, Normed, Source, Taps, Window
from nas.oneshot.fused.kernels.programs import dense as dense_programs
from nas.oneshot.fused.kernels.programs import depthwise as depthwise_programs
from nas.oneshot.fused.kernels.programs import norms as norm_programs
from nas.oneshot.fused.kernels.tiles import TILE, blocks_of, cdiv, dot_tile_of, grid_of, power, tile_of


def depthwise(source: Source, taps: Taps, window: Window) -> Tensor:
    """What depthwise convolutions make of maps, [G, P, C]."""
    channels = taps.outputs
    out = source.x.new_empty(taps.groups, window.outputs, channels)
    tile, (scale, shift) = tile_of(channels), source.statistics(taps.like)
    depthwise_programs.depthwise_forward[
        grid_of(window.outputs, channels, source.programs(taps.groups), tile)
    ](
        source.x, source.size, source.maps, scale, shift, taps.addresses, taps.like, taps.kind, out,
        *source.which(taps.kind), window.outputs, channels, **_sizes(source, taps, window), **tile,
    )  # fmt: skip
    return out


def depthwise_gradients(
    grad: Tensor, source: Source, taps: Taps, window: Window, *, for_x: bool, part: Tensor | None
) -> Tensor | None:
    """That of what the source's ReLU or batch-norm gets, [M, P, C] of its M maps, where it is asked for.

    part: [blocks, numbers] to be filled in with those of the weights, block by block of pixels.
    """
    channels, (scale, shift) = taps.outputs, source.statistics(taps.like)
    tile, sizes = tile_of(channels), _sizes(source, taps, window)
    programs, dx = source.programs(taps.groups), None
    if for_x:
        grid, together = (programs, 1) if source.apart else (source.maps, programs)
        dx = source.x.new_empty(source.maps, window.inputs, channels)
        depthwise_programs.depthwise_input_gradient[grid_of(window.inputs, channels, grid, tile)](
            grad, taps.addresses, taps.like, taps.kind, source.x, source.size, scale, shift, dx,
            *source.which(taps.kind), window.outputs, window.inputs, channels, **sizes,
            SHARED=0 if source.apart else source.maps, TOGETHER=together, **tile,
        )  # fmt: skip
    if part is not None:
        depthwise_programs.depthwise_weight_gradient[
            len(part), taps.most * cdiv(channels, tile["BC"]), programs
        ](
            source.x, source.size, source.maps, scale, shift, grad, part, part.shape[1], taps.kind,
            taps.places, *source.which(taps.kind), window.outputs, channels, **sizes, MOST=taps.most,
            LOOP=_loop(window, tile, part), **tile,
        )  # fmt: skip
    return dx


def convolve(source: Source, taps: Taps, window: Window, *, out: Tensor, after: Normed) -> None:
    """What dense convolutions make of maps, to `out` [G, P, O], and the statistics of what comes `after`."""
    tile, affine = dot_tile_of(taps.inputs, taps.outputs), after.affine
    blocks = cdiv(window.outputs, tile["BP"])
    part = torch.empty(taps.groups, blocks, 2, taps.outputs, device=out.device)
    own = (part, part, part) if affine is None else (affine.weights, affine.biases, affine.like)
    dense_programs.convolve_forward[
        blocks, cdiv(taps.outputs, tile["BO"]), source.programs(taps.groups)
    ](
        source.x, source.size, source.maps, taps.addresses, taps.like, taps.kind, out, part,
        *after.norm.tensors, *own, after.eps, after.tickets, *source.which(taps.kind), window.outputs,
        taps.inputs, taps.outputs, **_sizes(source, taps, window), LAST=taps.last, HALF=taps.half,
        AFFINE=affine is not None, BLOCKS=blocks, BB=TILE // tile["BO"], **tile,
    )  # fmt: skip


def convolve_gradients(
    grad: Tensor, source: Source, taps: Taps, window: Window, *, for_x: bool, part: Tensor | None
) -> Tensor | None:
    """As `depthwise_gradients`, of dense convolutions; through a ReLU, if any."""
    tile, sizes = dot_tile_of(taps.inputs, taps.outputs), _sizes(source, taps, window)
    sizes |= {"LAST": taps.last, "HALF": taps.half}
    programs, dx = source.programs(taps.groups), None
    if for_x:
        grid, together = (programs, 1) if source.apart else (source.maps, programs)
        dx = source.x.new_empty(source.maps, window.inputs, taps.inputs)
        dense_programs.convolve_input_gradient[
            cdiv(window.inputs, tile["BP"]), cdiv(taps.inputs, tile["BI"]), grid
        ](
            grad, taps.addresses, taps.like, taps.kind, source.x, source.size, dx, *source.which(taps.kind),
            window.outputs, window.inputs, taps.inputs, taps.outputs, **sizes,
            SHARED=0 if source.apart else source.maps, TOGETHER=together, **tile,
        )  # fmt: skip
    if part is not None:
        tiles = taps.most * cdiv(taps.inputs, tile["BI"]) * cdiv(taps.outputs, tile["BO"])
        dense_programs.convolve_weight_gradient[len(part), tiles, programs](
            source.x, source.size, source.maps, grad, part, part.shape[1], taps.kind, taps.places,
            *source.which(taps.kind), window.outputs, taps.inputs, taps.outputs, **sizes, MOST=taps.most,
            LOOP=_loop(window, tile, part), **tile,
        )  # fmt: skip
    return dx


def normalise(y: Tensor, norm: Norm, *, out: Tensor, where: Tensor | None, like: nn.BatchNorm2d) -> None:
    """What batch-norms make of `y` [G, P, C], to `out`, which has as many numbers in that order.

    where: as in `follow`, which is then done too; None where it is not. like: any of the batch-norms.
    """
    groups, pixels, channels = y.shape
    tile, momentum = tile_of(channels), float(cast(float, like.momentum))
    moved = (y if where is None else where, like.running_mean, like.num_batches_tracked, momentum)
    norm_programs.norm_forward[grid_of(pixels, channels, groups, tile)](
        y, norm.mean, norm.var, norm.scale, norm.shift, out, *moved, pixels, channels,
        FOLLOW=where is not None, **tile,
    )  # fmt: skip


def follow(where: Tensor, norm: Norm, momentum: float, *, like: nn.BatchNorm2d) -> None:
    """Moves running statistics towards some of `norm` [S, C].

    where: [N, 4] int64 addresses of mean, variance and count of each batch-norm, and the row of what it has
    seen. like: any of them.
    """
    channels = norm.mean.shape[1]
    width = min(128, power(channels))
    norm_programs.follow[cdiv(channels, width), len(where)](
        where, norm.mean, norm.var, like.running_mean, like.num_batches_tracked, float(momentum), channels,
        BC=width,
    )  # fmt: skip


def norm_gradients(
    grad: Tensor, y: Tensor, norm: Norm, *, out: Tensor, drawn: Drawn | None, tickets: Tensor
) -> Tensor:
    """Of `y` [G, P, C], to `out`. drawn: which of them are computed. tickets: see `Layout`.

    Returns those of biases and weights, [G, 2, C].
    """
    groups, pixels, channels = y.shape
    source = Source(y, drawn=drawn)
    tile, which = {"ON": drawn is not None, **tile_of(channels)}, source.which(y)
    blocks, loop = blocks_of(pixels, tile)
    make = torch.empty if drawn is None else torch.zeros
    part = torch.empty(groups, blocks, 2, channels, device=y.device)
    total = make(groups, 2, channels, device=y.device)
    programs = source.programs(groups)
    norm_programs.sums[blocks, cdiv(channels, tile["BC"]), programs](
        grad, y, norm.mean, norm.inv, part, total, tickets, *which, pixels, channels, BLOCKS=blocks,
        LOOP=loop, BB=TILE // tile["BC"], **tile,
    )  # fmt: skip
    norm_programs.norm_gradient[grid_of(pixels, channels, programs, tile)](
        grad, y, norm.mean, norm.inv, norm.scale, total, out, *which, pixels, channels, **tile
    )
    return total


def flags(on: Tensor | None, otherwise: Tensor) -> Tensor:
    """Which maps are computed; where all are, anything, for it is not read."""
    return otherwise if on is None else on


def _sizes(source: Source, taps: Taps, window: Window) -> dict[str, Any]:
    own = {"KINDS": taps.kinds, "PRE": source.pre, "ON": source.drawn is not None}
    return {**window.sizes(), **own}


def _loop(window: Window, tile: dict[str, int], part: Tensor) -> int:
    """Tiles of pixels in each part of a gradient of weights."""
    return cdiv(cdiv(window.outputs, tile["BP"]), len(part))
