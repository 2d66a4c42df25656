"""Triton programs of dense convolutions, 1x1 and larger ones in one launch, and of their gradients.

See `pixels` for what their arguments are. LAST says that the channels in are last in memory, [O, K, K, I],
else the weights are [O, I, K, K]. HALF says, where it is not 0, that each operation has two 1x1 kernels, the
first of which makes so many channels and the second the rest, one after the other in addresses, kind and
places; they count as taps, of which the second reads the pixel below and to the right of the first one's.
"""

import triton
import triton.language as tl

from nas.oneshot.fused.kernels.programs.blocks import done_last, leave_moments, normalise
from nas.oneshot.fused.kernels.programs.pixels import operation, place, ready, side_of


@triton.jit
def _moved(tap, side, HALF: tl.constexpr):
    """How far below and to the right of a pixel a tap reads."""
    if HALF > 0:
        return tap, tap
    return tap // side - side // 2, tap % side - side // 2


@triton.jit
def _has(o, tap, CO: tl.constexpr, HALF: tl.constexpr):
    """Which channels out read at a tap."""
    if HALF > 0:
        return (o < CO) & ((o >= HALF) == (tap == 1))
    return o < CO


@triton.jit
def _kernel(addresses, like, g, tap, HALF: tl.constexpr):
    """The kernel that a tap of an operation belongs to."""
    if HALF > 0:
        return tl.load(addresses + 2 * g + tap).to(like.dtype)
    return tl.load(addresses + g).to(like.dtype)


@triton.jit
def _at_tap(weight, addresses, like, g, tap, side, HALF: tl.constexpr):
    """The kernel that a tap belongs to, and how far below and to the right of a pixel it reads.

    weight: that of the first tap, read before the loop over taps. Only halves have another one.
    """
    if HALF > 0:
        weight = _kernel(addresses, like, g, tap, HALF)
    down, right = _moved(tap, side, HALF)
    return weight, down, right


@triton.jit
def _within(i, o, tap, taps, CI: tl.constexpr, LAST: tl.constexpr, HALF: tl.constexpr):
    """Where a weight is among those of its kernel."""
    if HALF > 0:
        return (o - tap * HALF) * CI + i
    if LAST:
        return (o * taps + tap) * CI + i
    return (o * CI + i) * taps + tap


@triton.jit
def _taken(
    x, addresses, like, g, p, P, o, scalar: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    SIDE: tl.constexpr, LAST: tl.constexpr, HALF: tl.constexpr, PRE: tl.constexpr, BP: tl.constexpr,
    BI: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Σ_tap,i weight[o, i, tap] x[p at tap, i] of one operation."""
    n, h, w = place(p, HO, WO)
    none = tl.zeros([BI], tl.float32)
    total = tl.zeros([BP, BO], tl.float32)
    weight = _kernel(addresses, like, g, 0, HALF)
    TAPS: tl.constexpr = 2 if HALF > 0 else SIDE * SIDE
    for tap in tl.range(TAPS, num_stages=1):
        weight, down, right = _at_tap(weight, addresses, like, g, tap, SIDE, HALF)
        row, column = h * STRIDE + down, w * STRIDE + right
        here = _has(o, tap, CO, HALF)
        inside = (p < P) & (row >= 0) & (row < HI) & (column >= 0) & (column < WI)
        for start in range(0, CI, BI):
            i = start + tl.arange(0, BI)
            valid = inside[:, None] & (i < CI)[None, :]
            at = x + ((n * HI + row) * WI + column)[:, None] * CI + i[None, :]
            v = ready(tl.load(at, mask=valid, other=0.0).to(tl.float32), valid, none, none, PRE)
            at = weight + _within(i[:, None], o[None, :], tap, TAPS, CI, LAST, HALF)
            taps = tl.load(at, mask=(i < CI)[:, None] & here[None, :], other=0.0)
            total += tl.dot(v.to(scalar), taps.to(scalar), input_precision="ieee")
    return total


@triton.jit
def convolve_forward(
    x, x_group, maps, addresses, like, kind, out, part, mean, var, inv, scale, shift, weights, biases,
    norm_like, eps, tickets, order, live, P, CI: tl.constexpr, CO: tl.constexpr, HI: tl.constexpr,
    WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr, KINDS: tl.constexpr,
    LAST: tl.constexpr, HALF: tl.constexpr, PRE: tl.constexpr, AFFINE: tl.constexpr, ON: tl.constexpr,
    BLOCKS: tl.constexpr, BB: tl.constexpr, BP: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """out[g, p, o] = Σ_tap,i weight[g, o, i, tap] x[g, p at tap, i], and the statistics of its batch-norm.

    part[g, block, ..] are moments of a block of pixels. Where AFFINE, weights and biases are the addresses of
    those of the batch-norms, of the type of norm_like. Grid: blocks of pixels, channels out, operations.
    """
    z = tl.program_id(2)
    if ON:
        if tl.load(live + z) == 0:
            return
    g = operation(order, z, ON)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    scalar: tl.constexpr = out.dtype.element_ty
    own = tl.load(kind + g)
    total = tl.zeros([BP, BO], tl.float32)
    for k in tl.static_range(len(KINDS)):
        if len(KINDS) == 1 or own == k:
            total = _taken(
                x + g % maps * x_group, addresses, like, g, p, P, o, scalar, CI, CO, HI, WI, HO, WO, STRIDE,
                KINDS[k][0], LAST, HALF, PRE, BP, BI, BO,
            )  # fmt: skip
    valid = (p < P)[:, None] & (o < CO)[None, :]
    kept = total.to(scalar)
    tl.store(out + (g * P + p[:, None]) * CO + o[None, :], kept, mask=valid)
    own_part = part + g * BLOCKS * 2 * CO
    pixels = tl.minimum(P - tl.program_id(0) * BP, BP)
    leave_moments(kept.to(tl.float32), valid, pixels, own_part + tl.program_id(0) * 2 * CO, o, CO)
    if done_last(tickets + g * tl.cdiv(CO, BO) + tl.program_id(1), BLOCKS):
        factor = tl.load(weights + g).to(norm_like.dtype) if AFFINE else norm_like
        bias = tl.load(biases + g).to(norm_like.dtype) if AFFINE else norm_like
        row = g * CO
        normalise(
            own_part, BLOCKS, mean + row, var + row, inv + row, scale + row, shift + row, factor, bias, eps,
            P, o, CO, BP, AFFINE, BB, BO,
        )  # fmt: skip


@triton.jit
def _given(
    grad, addresses, like, g, p, PI, i, scalar: tl.constexpr, CI: tl.constexpr, CO: tl.constexpr,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    SIDE: tl.constexpr, LAST: tl.constexpr, HALF: tl.constexpr, BP: tl.constexpr, BI: tl.constexpr,
    BO: tl.constexpr,
):  # fmt: skip
    """Σ_tap,o weight[o, i, tap] grad[the pixel that reads p at tap, o] of one operation."""
    n, h, w = place(p, HI, WI)
    total = tl.zeros([BP, BI], tl.float32)
    weight = _kernel(addresses, like, g, 0, HALF)
    TAPS: tl.constexpr = 2 if HALF > 0 else SIDE * SIDE
    for tap in tl.range(TAPS, num_stages=1):
        weight, down, right = _at_tap(weight, addresses, like, g, tap, SIDE, HALF)
        up, left = h - down, w - right
        row, column = up // STRIDE, left // STRIDE
        inside = (p < PI) & (up >= 0) & (left >= 0) & (row < HO) & (column < WO)
        inside = inside & (up % STRIDE == 0) & (left % STRIDE == 0)
        for start in tl.range(0, CO, BO, num_stages=1):  # more would not fit in registers
            o = start + tl.arange(0, BO)
            here = _has(o, tap, CO, HALF)
            valid = inside[:, None] & here[None, :]
            at = grad + ((n * HO + row) * WO + column)[:, None] * CO + o[None, :]
            d = tl.load(at, mask=valid, other=0.0)
            at = weight + _within(i[None, :], o[:, None], tap, TAPS, CI, LAST, HALF)
            taps = tl.load(at, mask=(i < CI)[None, :] & here[:, None], other=0.0)
            total += tl.dot(d, taps.to(scalar), input_precision="ieee")
    return total


@triton.jit
def convolve_input_gradient(
    grad, addresses, like, kind, x, x_group, out, order, live, P, PI, CI: tl.constexpr,
    CO: tl.constexpr, HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    STRIDE: tl.constexpr, KINDS: tl.constexpr, LAST: tl.constexpr, HALF: tl.constexpr, PRE: tl.constexpr,
    ON: tl.constexpr, SHARED: tl.constexpr, TOGETHER: tl.constexpr, BP: tl.constexpr, BI: tl.constexpr,
    BO: tl.constexpr,
):  # fmt: skip
    """The gradient [maps, PI, CI] of x, summed over operations where those share them: so many TOGETHER.

    Grid: pixels of the input, channels in, maps.
    """
    first = tl.program_id(2)
    if SHARED > 0:
        first = 0
    if ON:
        if tl.load(live + first) == 0:
            return
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    scalar: tl.constexpr = grad.dtype.element_ty
    total = tl.zeros([BP, BI], tl.float32)
    for nth in range(TOGETHER):
        z = first + nth
        done = True
        if ON:
            done = tl.load(live + z) != 0
        g = operation(order, z, ON)
        if SHARED > 1:
            done = done & (g % SHARED == tl.program_id(2))
        if done:
            own = tl.load(kind + g)
            for k in tl.static_range(len(KINDS)):
                if len(KINDS) == 1 or own == k:
                    total += _given(
                        grad + g * P * CO, addresses, like, g, p, PI, i, scalar, CI, CO, HI, WI, HO, WO,
                        STRIDE, KINDS[k][0], LAST, HALF, BP, BI, BO,
                    )  # fmt: skip
    q = operation(order, first, ON)
    if SHARED > 0:
        q = tl.program_id(2).to(tl.int64)
    valid = (p < PI)[:, None] & (i < CI)[None, :]
    if PRE == 1:
        v = tl.load(x + q * x_group + p[:, None] * CI + i[None, :], mask=valid, other=0.0)
        total = tl.where(v > 0, total, 0.0)
    tl.store(out + (q * PI + p[:, None]) * CI + i[None, :], total.to(out.dtype.element_ty), mask=valid)


@triton.jit
def convolve_weight_gradient(
    x, x_group, maps, grad, part, row_size, kind, places, order, live, P, CI: tl.constexpr, CO: tl.constexpr,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    KINDS: tl.constexpr, MOST: tl.constexpr, LOOP: tl.constexpr, LAST: tl.constexpr, HALF: tl.constexpr,
    PRE: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """part[block, places[g] + (o, i, tap)] = Σ_p x[g, p at tap, i] grad[g, p, o], over LOOP tiles of pixels.

    MOST: taps of a kernel, at most. Grid: blocks, taps x channels in x channels out, operations.
    """
    z = tl.program_id(2)
    if ON:
        if tl.load(live + z) == 0:
            return
    g = operation(order, z, ON)
    side = side_of(tl.load(kind + g), KINDS)
    tap = tl.program_id(1) % MOST
    if HALF == 0:
        if tap >= side * side:
            return
    block = tl.program_id(0)
    tile = tl.program_id(1) // MOST
    outs = tl.cdiv(CO, BO)
    i = tile // outs * BI + tl.arange(0, BI)
    o = tile % outs * BO + tl.arange(0, BO)
    scalar: tl.constexpr = grad.dtype.element_ty
    none = tl.zeros([BI], tl.float32)
    total = tl.zeros([BI, BO], tl.float32)
    for step in range(LOOP):
        p = (block * LOOP + step) * BP + tl.arange(0, BP)
        n, h, w = place(p, HO, WO)
        down, right = _moved(tap, side, HALF)
        row, column = h * STRIDE + down, w * STRIDE + right
        inside = (p < P) & (row >= 0) & (row < HI) & (column >= 0) & (column < WI)
        valid = inside[:, None] & (i < CI)[None, :]
        at = x + g % maps * x_group + ((n * HI + row) * WI + column)[:, None] * CI + i[None, :]
        v = ready(tl.load(at, mask=valid, other=0.0).to(tl.float32), valid, none, none, PRE)
        at = grad + (g * P + p[:, None]) * CO + o[None, :]
        d = tl.load(at, mask=(p < P)[:, None] & (o < CO)[None, :], other=0.0)
        total += tl.dot(tl.trans(v.to(scalar)), d, input_precision="ieee")
    own = 2 * g + tap if HALF > 0 else g
    at = block.to(tl.int64) * row_size + tl.load(places + own)
    to = part + at + _within(i[:, None], o[None, :], tap, side * side, CI, LAST, HALF)
    tl.store(to, total, mask=(i < CI)[:, None] & _has(o, tap, CO, HALF)[None, :])
