"""Launches of the programs of nodes: sums of contributions, pools, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.oneshot.fused.kernels.launch import flags
from nas.oneshot.fused.kernels.maps import Norm, Window
from nas.oneshot.fused.kernels.programs import nodes as node_programs
from nas.oneshot.fused.kernels.programs import pools as pool_programs
from nas.oneshot.fused.kernels.tiles import TILE, blocks_of, cdiv, grid_of, tile_of
from nas.oneshot.fused.layout import Level

NODE, EDGE = 1, 2
"""Columns of a table of contributions: the node, and the edge."""


@dataclass(frozen=True)
class Mixing:
    """Contributions and their weights.

    table: [K, 4] as `Layout` makes it. weights: [K]. row: the column of the table that says which row of the
      gradients belongs to each, NODE or EDGE. chosen: [K] 0 for those that are not computed; None where all
      are.
    """

    table: Tensor
    weights: Tensor
    row: int
    chosen: Tensor | None = None

    @property
    def flags(self) -> Tensor:
        """Those that are computed; where all are, anything, for it is not read."""
        return flags(self.chosen, self.weights)

    @property
    def on(self) -> bool:
        """Whether only some are."""
        return self.chosen is not None


@dataclass(frozen=True)
class Returned:
    """What nodes have left in the backward pass.

    rows: [rows, P, C] gradients of nodes or edges. sums: [K, 2, C] those that the gradient of a batch-norm
      takes, for each contribution.
    """

    rows: Tensor
    sums: Tensor


@dataclass(frozen=True)
class Pooled:
    """Gradients of pools.

    maps: [pools, P, C] from `pool_gradient`, if there are any. index: where the maxima are, of those that
      come first. on: [pools] 0 for those that are not computed; None where all are.
    """

    maps: Tensor | None
    index: Tensor | None
    window: Window
    on: Tensor | None = None


def node(
    raw: Tensor,
    norm: Norm,
    mixing: Mixing,
    states: Sequence[Tensor],
    *,
    masks: Tensor | None,
    rest: Tensor | None,
    images: int,
) -> Tensor:
    """The sum [P, C] of contributions from slots `raw` [S, P, C], of states [P, C] and of `rest` [P, C].

    mixing: those of the node alone, from slots first, then the states. masks: [edges, B].
    """
    _, pixels, channels = raw.shape
    out, tile = raw.new_empty(pixels, channels), tile_of(channels)
    held, more = raw if masks is None else masks, raw if rest is None else rest
    node_programs.node_forward[grid_of(pixels, channels, 1, tile)[:2]](
        raw, norm.scale, norm.shift, mixing.weights, mixing.table, tuple(states),
        held, more, out, mixing.flags, pixels, pixels // images, channels,
        KEPT=len(mixing.table) - len(states), MASKED=masks is not None, REST=rest is not None, ON=mixing.on,
        **tile,
    )  # fmt: skip
    return out


def node_sums(
    raw: Tensor,
    norm: Norm,
    mixing: Mixing,
    states: Sequence[Tensor],
    *,
    rows: Tensor,
    sums: Tensor,
    tickets: Tensor,
) -> None:
    """Fills in the sums [K, 2, C] of a node's contributions from its gradients, which are among `rows`.

    tickets: see `Layout`.
    """
    _, pixels, channels = raw.shape
    tile, count = tile_of(channels), len(mixing.table)
    blocks, loop = blocks_of(pixels, tile)
    part = sums.new_empty(count, blocks, 2, channels)
    node_programs.node_sums[blocks, cdiv(channels, tile["BC"]), count](
        raw, norm.mean, norm.inv, mixing.table, tuple(states), rows, part, sums, tickets, mixing.flags,
        pixels, count - len(states), channels, BLOCKS=blocks, ROW=mixing.row, ON=mixing.on, LOOP=loop,
        BB=TILE // tile["BC"], **tile,
    )  # fmt: skip


def branch_gradient(
    raw: Tensor, norm: Norm, mixing: Mixing, places: Tensor, *, returned: Returned, out: Tensor, first: int
) -> None:
    """Of the slots of some contributions before their last batch-norm, to `out`, whose first slot is `first`.

    raw, norm: of all slots.
    """
    _, pixels, channels = raw.shape
    tile = tile_of(channels)
    node_programs.branch_gradient[grid_of(pixels, channels, len(places), tile)](
        raw, norm.mean, norm.inv, norm.scale, mixing.weights, mixing.table, places, returned.sums,
        returned.rows, out, mixing.flags, first, pixels, channels, ROW=mixing.row, ON=mixing.on, **tile,
    )  # fmt: skip


def pools(
    x: Tensor,
    window: Window,
    maxima: int,
    *,
    out: Tensor,
    norm: Norm,
    eps: Tensor | None,
    tickets: Tensor,
    maps: int = 1,
) -> Tensor:
    """Pools, those of each map of `x` [maps * P, C] in turns, to `out` [pools, P', C].

    norm: filled in where a batch-norm follows. eps: [pools] of those, below 0 where none does; None where
    none does at all. tickets: see `Layout`. Returns where the maxima are, of the pools that come first.
    """
    count, pixels, channels = out.shape
    index = torch.empty(maxima, pixels, channels, dtype=torch.int8, device=x.device)
    width = tile_of(channels)["BC"]
    block = 2 * TILE // max(16, width)
    blocks = cdiv(pixels, block)
    part = tickets if eps is None else norm.mean.new_empty(count, blocks, 2, channels)
    pool_programs.pool_forward[blocks, cdiv(channels, width), count](
        x, x.numel() // maps, maps, out, index, part, *norm.tensors, part if eps is None else eps, tickets,
        flags(norm.on, tickets), pixels, channels, **window.sizes(), MAXIMA=maxima, NORMED=eps is not None,
        ON=norm.on is not None, BLOCKS=blocks, BB=TILE // width, BP=block, BC=width,
    )  # fmt: skip
    return index


def pool_gradient(raw: Tensor, norm: Norm, mixing: Mixing, level: Level, returned: Returned) -> Tensor:
    """Of what each pool of a level makes, `raw` [pools, P, C]."""
    count, pixels, channels = raw.shape
    out, tile = torch.empty_like(raw), tile_of(channels)
    pool_programs.pool_gradient[grid_of(pixels, channels, count, tile)](
        raw, norm.mean, norm.inv, mixing.weights, mixing.table, level.pooled, level.bounds, returned.sums,
        returned.rows, out, flags(norm.on, out), mixing.flags, pixels, channels, ROW=mixing.row,
        MOST=max(map(len, level.branches)), ON=mixing.on, **tile,
    )  # fmt: skip
    return out


def leaving_gradient(
    x: Tensor,
    chains: Sequence[Tensor],
    pools: Pooled,
    same: Tensor,
    mixing: Mixing,
    *,
    returned: Returned,
    busy: Tensor | None = None,
    maps: int = 1,
    other: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Of the maps `x` [maps * P, C] that a level reads, to `out` where that is given.

    chains: the part of each family, as `x`. same: contributions of identities. busy: [families] 0 for those
    of which no member is computed; None where all are. other: [B, C, H, W] what is added to that of one map.
    """
    pooled, index, window = pools.maps, pools.index, pools.window
    pixels, channels = len(x) // maps, x.shape[1]
    out, tile = torch.empty_like(x) if out is None else out, tile_of(channels)
    more, apart = (x, channels) if other is None else rows_of(other)
    pool_programs.leaving_gradient[grid_of(pixels, channels, maps, tile)](
        tuple(chains), more, apart, x if pooled is None else pooled, x if index is None else index,
        mixing.weights, mixing.table, same, returned.rows, out, flags(pools.on, out), flags(busy, out),
        mixing.flags, window.outputs, pixels, channels, **window.sizes(),
        MAXIMA=0 if index is None else len(index), POOLS=0 if pooled is None else len(pooled), SAME=len(same),
        MAPS=maps, OTHER=other is not None, ROW=mixing.row, ON=mixing.on, **tile,
    )  # fmt: skip
    return out


def rows_of(x: Tensor) -> tuple[Tensor, int]:
    """A map `[B, C, H, W]` whose channels are together, and how far it is from one pixel to the next.

    So are those of a part of a map with its channels last.
    """
    _, channels, height, width = x.shape
    apart = x.stride(3) if width > 1 else x.stride(2) if height > 1 else x.stride(0)
    wanted = (height * width * apart, 1, width * apart, apart)
    sizes = zip(x.shape, x.stride(), wanted, strict=True)
    if all(size == 1 or own == one for size, own, one in sizes):
        return x, apart
    return x.contiguous(memory_format=torch.channels_last), channels
