"""Triton programs of what leaves a node without convolutions: pools and identities, and their gradients.

Slots, contributions and their table are as in `nodes`; pools have slots of their own. Not yet run on a GPU.
"""

import triton
import triton.language as tl

from nas.oneshot.fused.kernels.programs.blocks import done_last, leave_moments, normalise
from nas.oneshot.fused.kernels.programs.pixels import place as pixel


@triton.jit
def pool_forward(
    x, x_group, maps, out, index, part, mean, var, inv, scale, shift, eps, tickets, on, P,
    C: tl.constexpr, HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    STRIDE: tl.constexpr, MAXIMA: tl.constexpr, NORMED: tl.constexpr, ON: tl.constexpr,
    BLOCKS: tl.constexpr, BB: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out[g] = the largest of 3x3 where g < MAXIMA, else their average; statistics as in `convolve_forward`.

    Pool g reads map g % maps, which are x_group numbers apart. index[g, p, c]: which of the nine is the
    largest, the first of equal ones; not a number beats all, as in PyTorch. Where NORMED, a pool has a
    batch-norm if eps[g] is not below 0. Grid: blocks of pixels, channels, pools.
    """
    g = tl.program_id(2).to(tl.int64)
    if ON:
        if tl.load(on + g) == 0:
            return
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    valid = (p < P)[:, None] & here[None, :]
    n, h, w = pixel(p, HO, WO)
    best = tl.full([BP, BC], float("-inf"), tl.float32)
    at = tl.full([BP, BC], 9, tl.int32)
    total = tl.zeros([BP, BC], tl.float32)
    count = tl.zeros([BP], tl.float32)
    for tap in range(9):
        row, column = h * STRIDE + tap // 3 - 1, w * STRIDE + tap % 3 - 1
        inside = (p < P) & (row >= 0) & (row < HI) & (column >= 0) & (column < WI)
        seen = inside[:, None] & here[None, :]
        at_tap = x + g % maps * x_group + ((n * HI + row) * WI + column)[:, None] * C + c[None, :]
        v = tl.load(at_tap, mask=seen, other=0.0)
        v = v.to(tl.float32)
        better = seen & ((at == 9) | (v > best) | (v != v))
        best = tl.where(better, v, best)
        at = tl.where(better, tap, at)
        total += v
        count += inside.to(tl.float32)
    place = (g * P + p[:, None]) * C + c[None, :]
    if MAXIMA > 0:
        tl.store(index + place, at.to(tl.int8), mask=valid & (g < MAXIMA))
    kept = tl.where(g < MAXIMA, best, total / tl.maximum(count, 1.0)[:, None]).to(out.dtype.element_ty)
    tl.store(out + place, kept, mask=valid)
    if NORMED:
        own = tl.load(eps + g)
        if own >= 0:
            own_part = part + g * BLOCKS * 2 * C
            pixels = tl.minimum(P - tl.program_id(0) * BP, BP)
            leave_moments(kept.to(tl.float32), valid, pixels, own_part + tl.program_id(0) * 2 * C, c, C)
            if done_last(tickets + g * tl.cdiv(C, BC) + tl.program_id(1), BLOCKS):
                row = g * C
                normalise(
                    own_part, BLOCKS, mean + row, var + row, inv + row, scale + row, shift + row, eps, eps,
                    own, P, c, C, BP, AFFINE=False, BB=BB, BC=BC,
                )  # fmt: skip


@triton.jit
def pool_gradient(
    raw, mean, inv, weights, table, members, bounds, sums, grad, out, on, chosen, P, C: tl.constexpr,
    ROW: tl.constexpr, MOST: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out[j]: the gradient of what pool j makes, from all branches that share it, members[bounds[j]] and on.

    MOST: branches of a pool, at most. Grid: pixels, channels, pools.
    """
    j = tl.program_id(2).to(tl.int64)
    if ON:
        if tl.load(on + j) == 0:
            return
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    valid = (p < P)[:, None] & here[None, :]
    place = p[:, None] * C + c[None, :]
    start = tl.load(bounds + j)
    stop = tl.load(bounds + j + 1)
    normed = here & (tl.load(table + 4 * tl.load(members + start) + 3) > 0)
    m = tl.load(mean + j * C + c, mask=normed, other=0.0)
    i = tl.load(inv + j * C + c, mask=normed, other=1.0)
    v = (tl.load(raw + j * P * C + place, mask=valid, other=0.0).to(tl.float32) - m[None, :]) * i[None, :]
    v = tl.where(normed[None, :], v, 0.0)  # not even infinite ones matter where there is no norm
    total = tl.zeros([BP, BC], tl.float32)
    for e in range(MOST):
        more = start + e < stop
        k = tl.load(members + start + e, mask=more, other=0)
        if ON:
            more = more & (tl.load(chosen + k) != 0)
        row = tl.load(table + 4 * k + ROW).to(tl.int64)
        a = tl.load(sums + k * 2 * C + c, mask=normed & more, other=0.0) / P
        b = tl.load(sums + (k * 2 + 1) * C + c, mask=normed & more, other=0.0) / P
        d = tl.load(grad + row * P * C + place, mask=valid & more, other=0.0).to(tl.float32)
        weight = tl.load(weights + k, mask=more, other=0.0).to(tl.float32)
        total += weight * (d - a[None, :] - v * b[None, :])
    tl.store(out + j * P * C + place, (total * i[None, :]).to(out.dtype.element_ty), mask=valid)


@triton.jit
def leaving_gradient(
    chains, other, apart, pools, index, weights, table, members, grad, out, on, busy, chosen, P, PI,
    C: tl.constexpr, HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    STRIDE: tl.constexpr, MAXIMA: tl.constexpr, POOLS: tl.constexpr, SAME: tl.constexpr, MAPS: tl.constexpr,
    OTHER: tl.constexpr, ROW: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out = the gradient of each map: that of chains, of its pools from `pool_gradient`, and of identities.

    members: the contributions of SAME identities; of pools and identities, those of the maps take turns. on:
    of the pools; busy: of the chains, whether any of their operations is computed. other: what is added where
    OTHER, its pixels `apart` numbers from each other. Grid: pixels of a map, channels, maps.
    """
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    valid = (p < PI)[:, None] & here[None, :]
    place = p[:, None] * C + c[None, :]
    own = tl.program_id(2).to(tl.int64) * PI * C + place
    n, h, w = pixel(p, HI, WI)
    total = tl.zeros([BP, BC], tl.float32)
    if OTHER:
        at = other + p[:, None].to(tl.int64) * apart + c[None, :]
        total += tl.load(at, mask=valid, other=0.0).to(tl.float32)
    for i in tl.static_range(len(chains)):
        read = valid
        if ON:
            read = read & (tl.load(busy + i) != 0)
        total += tl.load(chains[i] + own, mask=read, other=0.0).to(tl.float32)
    for turn in tl.static_range(POOLS // MAPS):
        j = turn * MAPS + tl.program_id(2).to(tl.int64)
        wanted = p < PI
        if ON:
            wanted = wanted & (tl.load(on + j) != 0)
        for tap in range(9):
            up, left = h - (tap // 3 - 1), w - (tap % 3 - 1)
            row, column = up // STRIDE, left // STRIDE
            inside = wanted & (up >= 0) & (left >= 0) & (row < HO) & (column < WO)
            inside = inside & (up % STRIDE == 0) & (left % STRIDE == 0)
            seen = inside[:, None] & here[None, :]
            q = j * P * C + ((n * HO + row) * WO + column)[:, None] * C + c[None, :]
            d = tl.load(pools + q, mask=seen, other=0.0).to(tl.float32)
            if turn * MAPS < MAXIMA:
                d = tl.where(tl.load(index + q, mask=seen, other=9) == tap, d, 0.0)
            else:
                high = tl.minimum(row * STRIDE + 2, HI) - tl.maximum(row * STRIDE - 1, 0)
                wide = tl.minimum(column * STRIDE + 2, WI) - tl.maximum(column * STRIDE - 1, 0)
                d = d / tl.where(inside, high * wide, 1).to(tl.float32)[:, None]
            total += d
    for turn in range(SAME // MAPS):
        k = tl.load(members + turn * MAPS + tl.program_id(2))
        node = tl.load(table + 4 * k + ROW).to(tl.int64)
        read = valid
        if ON:
            read = read & (tl.load(chosen + k) != 0)
        d = tl.load(grad + node * P * C + place, mask=read, other=0.0).to(tl.float32)
        total += tl.load(weights + k).to(tl.float32) * d
    tl.store(out + own, total.to(out.dtype.element_ty), mask=valid)
