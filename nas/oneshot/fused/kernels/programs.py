"""Triton programs of a group of operations: convolutions, batch-norm, and their gradients.

Maps are [P, C], row after row, with P = B * H * W pixels (channels last); those of G operations one after
the other, [G, P, C]. A map that all operations share has a group stride of 0. Sums over pixels are written
block by block and added by the caller, so that they are the same on every run (no atomics).

ON says whether only some operations are computed: those of which on[g] is not 0, as a mixture knows that was
drawn on the device. The programs of all others leave at once and write nothing, but for sums, which are 0.

PRE says what is done to a map while it is read: nothing (0), ReLU (1), or batch-norm and ReLU (2). Sums are
in float32; maps are in the type they have. Channels are tiles of a power of two, some of it unused.
"""

import triton
import triton.language as tl


@triton.jit
def _place(p, height: tl.constexpr, width: tl.constexpr):
    """Image, line and column of pixels."""
    return p // (width * height), (p // width) % height, p % width


@triton.jit
def _none(on, G: tl.constexpr):
    """Whether no operation of G is computed."""
    found = 0
    for g in range(G):
        found = found | tl.load(on + g)
    return found == 0


@triton.jit
def _ready(v, valid, mean, inv, PRE: tl.constexpr):
    """Values as the layers before a convolution leave them; zero outside of the map."""
    if PRE == 2:
        v = (v - mean[None, :]) * inv[None, :]
    if PRE >= 1:
        v = tl.maximum(v, 0.0)
    return tl.where(valid, v, 0.0)


@triton.jit
def depthwise_forward(
    x, x_group, mean, inv, weight, out, on, P, C: tl.constexpr, HI: tl.constexpr, WI: tl.constexpr,
    HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr,
    PRE: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out[g, p, c] = Σ_tap weight[g, tap, c] x[g, p at tap, c]. Grid: pixels, channels, groups."""
    g = tl.program_id(2).to(tl.int64)
    if ON:
        if tl.load(on + g) == 0:
            return
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    n, h, w = _place(p, HO, WO)
    m = tl.load(mean + g * C + c, mask=here, other=0.0) if PRE == 2 else tl.zeros([BC], tl.float32)
    i = tl.load(inv + g * C + c, mask=here, other=0.0) if PRE == 2 else tl.zeros([BC], tl.float32)
    total = tl.zeros([BP, BC], tl.float32)
    for kh in tl.static_range(K):
        row = h * STRIDE + (kh - K // 2) * DILATION
        for kw in tl.static_range(K):
            column = w * STRIDE + (kw - K // 2) * DILATION
            inside = (p < P) & (row >= 0) & (row < HI) & (column >= 0) & (column < WI)
            valid = inside[:, None] & here[None, :]
            place = x + g * x_group + ((n * HI + row) * WI + column)[:, None] * C + c[None, :]
            v = _ready(tl.load(place, mask=valid, other=0.0).to(tl.float32), valid, m, i, PRE)
            tap = tl.load(weight + (g * K * K + kh * K + kw) * C + c, mask=here, other=0.0)
            total += v * tap.to(tl.float32)[None, :]
    place = out + (g * P + p[:, None]) * C + c[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(p < P)[:, None] & here[None, :])


@triton.jit
def depthwise_input_gradient(
    grad, weight, x, x_group, mean, out, on, G: tl.constexpr, P, PI, C: tl.constexpr, HI: tl.constexpr,
    WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, K: tl.constexpr,
    DILATION: tl.constexpr, PRE: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The gradient [groups, PI, C] of what PRE=2 normalised or of x, summed over G that share it.

    Grid: pixels of the input, channels, groups that share nothing.
    """
    q = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    if ON:
        if _none(on + q * G, G):
            return
    n, h, w = _place(p, HI, WI)
    total = tl.zeros([BP, BC], tl.float32)
    for shared in range(G):
        g = q * G + shared
        live = True
        if ON:
            live = tl.load(on + g) != 0
        if live:
            for kh in tl.static_range(K):
                up = h - (kh - K // 2) * DILATION
                for kw in tl.static_range(K):
                    left = w - (kw - K // 2) * DILATION
                    row, column = up // STRIDE, left // STRIDE
                    inside = (p < PI) & (up >= 0) & (left >= 0) & (row < HO) & (column < WO)
                    inside = inside & (up % STRIDE == 0) & (left % STRIDE == 0)
                    valid = inside[:, None] & here[None, :]
                    place = grad + (g * P + ((n * HO + row) * WO + column)[:, None]) * C + c[None, :]
                    tap = tl.load(weight + (g * K * K + kh * K + kw) * C + c, mask=here, other=0.0)
                    total += (
                        tl.load(place, mask=valid, other=0.0).to(tl.float32) * tap.to(tl.float32)[None, :]
                    )
    valid = (p < PI)[:, None] & here[None, :]
    if PRE >= 1:
        v = tl.load(x + q * x_group + p[:, None] * C + c[None, :], mask=valid, other=0.0).to(tl.float32)
        least = tl.load(mean + q * C + c, mask=here, other=0.0) if PRE == 2 else tl.zeros([BC], tl.float32)
        total = tl.where(v > least[None, :], total, 0.0)
    tl.store(out + (q * PI + p[:, None]) * C + c[None, :], total.to(out.dtype.element_ty), mask=valid)


@triton.jit
def depthwise_weight_gradient(
    x, x_group, mean, inv, grad, part, on, P, C: tl.constexpr, blocks, HI: tl.constexpr, WI: tl.constexpr,
    HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr,
    PRE: tl.constexpr, ON: tl.constexpr, LOOP: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """part[g, block, tap, c] = Σ_p x[g, p at tap, c] grad[g, p, c]. Grid: blocks, taps x channels, groups."""
    g = tl.program_id(2).to(tl.int64)
    block = tl.program_id(0)
    tap = tl.program_id(1) % (K * K)
    c = tl.program_id(1) // (K * K) * BC + tl.arange(0, BC)
    here = c < C
    if ON:
        if tl.load(on + g) == 0:
            place = part + ((g * blocks + block) * K * K + tap) * C + c
            tl.store(place, tl.zeros([BC], tl.float32), mask=here)
            return
    down, right = (tap // K - K // 2) * DILATION, (tap % K - K // 2) * DILATION
    m = tl.load(mean + g * C + c, mask=here, other=0.0) if PRE == 2 else tl.zeros([BC], tl.float32)
    i = tl.load(inv + g * C + c, mask=here, other=0.0) if PRE == 2 else tl.zeros([BC], tl.float32)
    total = tl.zeros([BC], tl.float32)
    for step in range(LOOP):
        p = (block * LOOP + step) * BP + tl.arange(0, BP)
        n, h, w = _place(p, HO, WO)
        row, column = h * STRIDE + down, w * STRIDE + right
        inside = (p < P) & (row >= 0) & (row < HI) & (column >= 0) & (column < WI)
        valid = inside[:, None] & here[None, :]
        place = x + g * x_group + ((n * HI + row) * WI + column)[:, None] * C + c[None, :]
        v = _ready(tl.load(place, mask=valid, other=0.0).to(tl.float32), valid, m, i, PRE)
        d = tl.load(grad + (g * P + p[:, None]) * C + c[None, :], mask=valid, other=0.0).to(tl.float32)
        total += tl.sum(v * d, 0)
    tl.store(part + ((g * blocks + block) * K * K + tap) * C + c, total, mask=here)


@triton.jit
def convolve_forward(
    x, x_group, weight, out, part, on, P, blocks, CI: tl.constexpr, CO: tl.constexpr, HI: tl.constexpr,
    WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, K: tl.constexpr,
    PRE: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """out[g, p, o] = Σ_tap,i weight[g, tap, i, o] x[g, p at tap, i], and moments of each block of pixels.

    part[g, block, 0, o] is the mean, part[g, block, 1, o] the sum of squares around it. Grid: pixels,
    channels out, groups.
    """
    g = tl.program_id(2).to(tl.int64)
    if ON:
        if tl.load(on + g) == 0:
            return
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    n, h, w = _place(p, HO, WO)
    kind: tl.constexpr = out.dtype.element_ty
    none = tl.zeros([BI], tl.float32)
    total = tl.zeros([BP, BO], tl.float32)
    for tap in tl.static_range(K * K):
        row, column = h * STRIDE + tap // K - K // 2, w * STRIDE + tap % K - K // 2
        inside = (p < P) & (row >= 0) & (row < HI) & (column >= 0) & (column < WI)
        for start in range(0, CI, BI):
            i = start + tl.arange(0, BI)
            valid = inside[:, None] & (i < CI)[None, :]
            place = x + g * x_group + ((n * HI + row) * WI + column)[:, None] * CI + i[None, :]
            v = _ready(tl.load(place, mask=valid, other=0.0).to(tl.float32), valid, none, none, PRE)
            place = weight + ((g * K * K + tap) * CI + i[:, None]) * CO + o[None, :]
            taps = tl.load(place, mask=(i < CI)[:, None] & (o < CO)[None, :], other=0.0)
            total += tl.dot(v.to(kind), taps.to(kind), input_precision="ieee")
    valid = (p < P)[:, None] & (o < CO)[None, :]
    kept = total.to(kind)
    tl.store(out + (g * P + p[:, None]) * CO + o[None, :], kept, mask=valid)
    v = tl.where(valid, kept.to(tl.float32), 0.0)
    mean = tl.sum(v, 0) / tl.minimum(P - tl.program_id(0) * BP, BP)
    off = tl.where(valid, v - mean[None, :], 0.0)
    place = part + (g * blocks + tl.program_id(0)) * 2 * CO + o
    tl.store(place, mean, mask=o < CO)
    tl.store(place + CO, tl.sum(off * off, 0), mask=o < CO)


@triton.jit
def moments(
    part, mean, var, inv, on, eps, P, C: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
    ON: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Mean, unbiased variance and 1 / √(biased variance + eps) of all pixels from those of blocks of BLOCK.

    Chan et al. 1979: nothing cancels, as it does in a difference of sums. Grid: channels, groups.
    """
    g = tl.program_id(1).to(tl.int64)
    if ON:
        if tl.load(on + g) == 0:
            return
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    here = c < C
    total = tl.zeros([BC], tl.float32)
    for block in range(BLOCKS):
        count = tl.minimum(P - block * BLOCK, BLOCK)
        total += count * tl.load(part + (g * BLOCKS + block) * 2 * C + c, mask=here, other=0.0)
    m = total / P
    off = tl.zeros([BC], tl.float32)
    for block in range(BLOCKS):
        count = tl.minimum(P - block * BLOCK, BLOCK)
        place = part + (g * BLOCKS + block) * 2 * C + c
        away = tl.load(place, mask=here, other=0.0) - m
        off += tl.load(place + C, mask=here, other=0.0) + count * away * away
    tl.store(mean + g * C + c, m, mask=here)
    tl.store(var + g * C + c, off / tl.maximum(P - 1, 1), mask=here)
    tl.store(inv + g * C + c, 1.0 / tl.sqrt(off / P + eps), mask=here)


@triton.jit
def convolve_input_gradient(
    grad, weight, x, x_group, out, on, G: tl.constexpr, P, PI, CI: tl.constexpr, CO: tl.constexpr,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    K: tl.constexpr, PRE: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr, BI: tl.constexpr,
    BO: tl.constexpr,
):  # fmt: skip
    """The gradient [groups, PI, CI] of x, summed over G that share it. Grid: pixels, channels in, groups."""
    q = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    if ON:
        if _none(on + q * G, G):
            return
    n, h, w = _place(p, HI, WI)
    kind: tl.constexpr = grad.dtype.element_ty
    total = tl.zeros([BP, BI], tl.float32)
    for shared in range(G):
        g = q * G + shared
        live = True
        if ON:
            live = tl.load(on + g) != 0
        if live:
            for tap in tl.static_range(K * K):
                up, left = h - (tap // K - K // 2), w - (tap % K - K // 2)
                row, column = up // STRIDE, left // STRIDE
                inside = (p < PI) & (up >= 0) & (left >= 0) & (row < HO) & (column < WO)
                inside = inside & (up % STRIDE == 0) & (left % STRIDE == 0)
                for start in range(0, CO, BO):
                    o = start + tl.arange(0, BO)
                    valid = inside[:, None] & (o < CO)[None, :]
                    place = grad + (g * P + ((n * HO + row) * WO + column)[:, None]) * CO + o[None, :]
                    d = tl.load(place, mask=valid, other=0.0)
                    place = weight + ((g * K * K + tap) * CI + i[None, :]) * CO + o[:, None]
                    taps = tl.load(place, mask=(i < CI)[None, :] & (o < CO)[:, None], other=0.0)
                    total += tl.dot(d, taps.to(kind), input_precision="ieee")
    valid = (p < PI)[:, None] & (i < CI)[None, :]
    if PRE == 1:
        v = tl.load(x + q * x_group + p[:, None] * CI + i[None, :], mask=valid, other=0.0)
        total = tl.where(v > 0, total, 0.0)
    tl.store(out + (q * PI + p[:, None]) * CI + i[None, :], total.to(out.dtype.element_ty), mask=valid)


@triton.jit
def convolve_weight_gradient(
    x, x_group, grad, part, on, P, blocks, CI: tl.constexpr, CO: tl.constexpr, HI: tl.constexpr,
    WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, K: tl.constexpr,
    PRE: tl.constexpr, ON: tl.constexpr, LOOP: tl.constexpr, BP: tl.constexpr, BI: tl.constexpr,
    BO: tl.constexpr,
):  # fmt: skip
    """part[g, block, tap, i, o] = Σ_p x[g, p at tap, i] grad[g, p, o].

    Grid: blocks, taps x channels in x channels out, groups.
    """
    g = tl.program_id(2).to(tl.int64)
    block = tl.program_id(0)
    tap = tl.program_id(1) % (K * K)
    tile = tl.program_id(1) // (K * K)
    outs = tl.cdiv(CO, BO)
    i = tile // outs * BI + tl.arange(0, BI)
    o = tile % outs * BO + tl.arange(0, BO)
    to = part + (((g * blocks + block) * K * K + tap) * CI + i[:, None]) * CO + o[None, :]
    kind: tl.constexpr = grad.dtype.element_ty
    none = tl.zeros([BI], tl.float32)
    total = tl.zeros([BI, BO], tl.float32)
    if ON:
        if tl.load(on + g) == 0:
            tl.store(to, total, mask=(i < CI)[:, None] & (o < CO)[None, :])
            return
    for step in range(LOOP):
        p = (block * LOOP + step) * BP + tl.arange(0, BP)
        n, h, w = _place(p, HO, WO)
        row, column = h * STRIDE + tap // K - K // 2, w * STRIDE + tap % K - K // 2
        inside = (p < P) & (row >= 0) & (row < HI) & (column >= 0) & (column < WI)
        valid = inside[:, None] & (i < CI)[None, :]
        place = x + g * x_group + ((n * HI + row) * WI + column)[:, None] * CI + i[None, :]
        v = _ready(tl.load(place, mask=valid, other=0.0).to(tl.float32), valid, none, none, PRE)
        place = grad + (g * P + p[:, None]) * CO + o[None, :]
        d = tl.load(place, mask=(p < P)[:, None] & (o < CO)[None, :], other=0.0)
        total += tl.dot(tl.trans(v.to(kind)), d, input_precision="ieee")
    tl.store(to, total, mask=(i < CI)[:, None] & (o < CO)[None, :])


@triton.jit
def sums(
    grad, y, mean, inv, part, on, P, C: tl.constexpr, blocks, ON: tl.constexpr, LOOP: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """part[g, block, 0 and 1, c] = Σ_p grad and Σ_p grad (y - mean) inv. Grid: blocks, channels, groups."""
    g = tl.program_id(2).to(tl.int64)
    if ON:
        if tl.load(on + g) == 0:
            return
    block = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    m = tl.load(mean + g * C + c, mask=here, other=0.0)
    i = tl.load(inv + g * C + c, mask=here, other=0.0)
    first = tl.zeros([BC], tl.float32)
    second = tl.zeros([BC], tl.float32)
    for step in range(LOOP):
        p = (block * LOOP + step) * BP + tl.arange(0, BP)
        valid = (p < P)[:, None] & here[None, :]
        place = (g * P + p[:, None]) * C + c[None, :]
        d = tl.load(grad + place, mask=valid, other=0.0).to(tl.float32)
        v = tl.load(y + place, mask=valid, other=0.0).to(tl.float32)
        first += tl.sum(d, 0)
        second += tl.sum(d * (v - m[None, :]) * i[None, :], 0)
    place = part + (g * blocks + block) * 2 * C + c
    tl.store(place, first, mask=here)
    tl.store(place + C, second, mask=here)


@triton.jit
def norm_gradient(
    grad, y, mean, inv, total, out, on, P, C: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """out = inv (grad - total[0] / P - x̂ total[1] / P), with x̂ = (y - mean) inv and the sums of `sums`.

    Grid: pixels, channels, groups.
    """
    g = tl.program_id(2).to(tl.int64)
    if ON:
        if tl.load(on + g) == 0:
            return
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    valid = (p < P)[:, None] & here[None, :]
    place = (g * P + p[:, None]) * C + c[None, :]
    m = tl.load(mean + g * C + c, mask=here, other=0.0)
    i = tl.load(inv + g * C + c, mask=here, other=0.0)
    a = tl.load(total + g * 2 * C + c, mask=here, other=0.0) / P
    b = tl.load(total + (g * 2 + 1) * C + c, mask=here, other=0.0) / P
    d = tl.load(grad + place, mask=valid, other=0.0).to(tl.float32)
    v = (tl.load(y + place, mask=valid, other=0.0).to(tl.float32) - m[None, :]) * i[None, :]
    v = (d - a[None, :] - v * b[None, :]) * i[None, :]
    tl.store(out + place, v.to(out.dtype.element_ty), mask=valid)
