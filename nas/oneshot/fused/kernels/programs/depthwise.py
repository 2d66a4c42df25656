"""Triton programs of depthwise convolutions, of all kinds in one launch, and of their gradients.

See `pixels` for what their arguments are.
"""

import triton
import triton.language as tl

from nas.oneshot.fused.kernels.programs.pixels import dilation_of, operation, place, ready, side_of


@triton.jit
def _taken(
    x, taps, scale, shift, p, P, c, C: tl.constexpr, HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, STRIDE: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr, PRE: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Σ_tap taps[c, tap] x[p at tap, c] of one operation."""
    n, h, w = place(p, HO, WO)
    here = c < C
    total = tl.zeros([BP, BC], tl.float32)
    for tap in range(K * K):  # not unrolled, or all is loaded at once and registers do not suffice
        row, column = h * STRIDE + (tap // K - K // 2) * DILATION, w * STRIDE + (tap % K - K // 2) * DILATION
        inside = (p < P) & (row >= 0) & (row < HI) & (column >= 0) & (column < WI)
        valid = inside[:, None] & here[None, :]
        at = x + ((n * HI + row) * WI + column)[:, None] * C + c[None, :]
        v = ready(tl.load(at, mask=valid, other=0.0).to(tl.float32), valid, scale, shift, PRE)
        total += v * tl.load(taps + c * (K * K) + tap, mask=here, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def depthwise_forward(
    x, x_group, maps, scale, shift, addresses, like, kind, out, order, live, P, C: tl.constexpr,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    KINDS: tl.constexpr, PRE: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out[g, p, c] = Σ_tap weight[g, c, tap] x[g, p at tap, c]. Grid: pixels, channels, operations."""
    z = tl.program_id(2)
    if ON:
        if tl.load(live + z) == 0:
            return
    g = operation(order, z, ON)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    a = tl.load(scale + g * C + c, mask=here, other=0.0) if PRE == 2 else tl.zeros([BC], tl.float32)
    b = tl.load(shift + g * C + c, mask=here, other=0.0) if PRE == 2 else tl.zeros([BC], tl.float32)
    taps = tl.load(addresses + g).to(like.dtype)
    own = tl.load(kind + g)
    total = tl.zeros([BP, BC], tl.float32)
    for k in tl.static_range(len(KINDS)):
        if len(KINDS) == 1 or own == k:
            total = _taken(
                x + g % maps * x_group, taps, a, b, p, P, c, C, HI, WI, HO, WO, STRIDE, KINDS[k][0],
                KINDS[k][1], PRE, BP, BC,
            )  # fmt: skip
    at = out + (g * P + p[:, None]) * C + c[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(p < P)[:, None] & here[None, :])


@triton.jit
def _given(
    grad, taps, p, PI, c, C: tl.constexpr, HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr,
    WO: tl.constexpr, STRIDE: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """Σ_tap taps[c, tap] grad[the pixel that reads p at tap, c] of one operation."""
    n, h, w = place(p, HI, WI)
    here = c < C
    total = tl.zeros([BP, BC], tl.float32)
    for tap in range(K * K):  # not unrolled, as above
        up, left = h - (tap // K - K // 2) * DILATION, w - (tap % K - K // 2) * DILATION
        row, column = up // STRIDE, left // STRIDE
        inside = (p < PI) & (up >= 0) & (left >= 0) & (row < HO) & (column < WO)
        inside = inside & (up % STRIDE == 0) & (left % STRIDE == 0)
        valid = inside[:, None] & here[None, :]
        at = grad + ((n * HO + row) * WO + column)[:, None] * C + c[None, :]
        d = tl.load(at, mask=valid, other=0.0).to(tl.float32)
        total += d * tl.load(taps + c * (K * K) + tap, mask=here, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def depthwise_input_gradient(
    grad, addresses, like, kind, x, x_group, scale, shift, out, order, live, P, PI, C: tl.constexpr,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    KINDS: tl.constexpr, PRE: tl.constexpr, ON: tl.constexpr, SHARED: tl.constexpr,
    TOGETHER: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The gradient [groups, PI, C] of what PRE=2 normalised or of x.

    Where operations share maps, it is that of each map, summed over them: so many TOGETHER. Grid: pixels of
    the input, channels, maps.
    """
    first = tl.program_id(2)
    if SHARED > 0:
        first = 0
    if ON:
        if tl.load(live + first) == 0:
            return
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    total = tl.zeros([BP, BC], tl.float32)
    for nth in range(TOGETHER):
        z = first + nth
        done = True
        if ON:
            done = tl.load(live + z) != 0
        g = operation(order, z, ON)
        if SHARED > 1:
            done = done & (g % SHARED == tl.program_id(2))
        if done:
            taps = tl.load(addresses + g).to(like.dtype)
            own = tl.load(kind + g)
            for k in tl.static_range(len(KINDS)):
                if len(KINDS) == 1 or own == k:
                    total += _given(
                        grad + g * P * C, taps, p, PI, c, C, HI, WI, HO, WO, STRIDE, KINDS[k][0], KINDS[k][1],
                        BP, BC,
                    )  # fmt: skip
    q = operation(order, first, ON)
    if SHARED > 0:
        q = tl.program_id(2).to(tl.int64)
    valid = (p < PI)[:, None] & here[None, :]
    if PRE >= 1:
        v = tl.load(x + q * x_group + p[:, None] * C + c[None, :], mask=valid, other=0.0).to(tl.float32)
        if PRE == 2:
            a = tl.load(scale + q * C + c, mask=here, other=0.0)
            v = v * a[None, :] + tl.load(shift + q * C + c, mask=here, other=0.0)[None, :]
        total = tl.where(v > 0, total, 0.0)
    tl.store(out + (q * PI + p[:, None]) * C + c[None, :], total.to(out.dtype.element_ty), mask=valid)


@triton.jit
def depthwise_weight_gradient(
    x, x_group, maps, scale, shift, grad, part, row_size, kind, places, order, live, P, C: tl.constexpr,
    HI: tl.constexpr, WI: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr, STRIDE: tl.constexpr,
    KINDS: tl.constexpr, MOST: tl.constexpr, LOOP: tl.constexpr, PRE: tl.constexpr, ON: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """part[block, places[g] + (c, tap)] = Σ_p x[g, p at tap, c] grad[g, p, c], over LOOP tiles of pixels.

    MOST: taps of a kernel, at most. Grid: blocks, taps x channels, operations.
    """
    z = tl.program_id(2)
    if ON:
        if tl.load(live + z) == 0:
            return
    g = operation(order, z, ON)
    own = tl.load(kind + g)
    side = side_of(own, KINDS)
    dilation = dilation_of(own, KINDS)
    tap = tl.program_id(1) % MOST
    if tap >= side * side:
        return
    block = tl.program_id(0)
    c = tl.program_id(1) // MOST * BC + tl.arange(0, BC)
    here = c < C
    down, right = (tap // side - side // 2) * dilation, (tap % side - side // 2) * dilation
    a = tl.load(scale + g * C + c, mask=here, other=0.0) if PRE == 2 else tl.zeros([BC], tl.float32)
    b = tl.load(shift + g * C + c, mask=here, other=0.0) if PRE == 2 else tl.zeros([BC], tl.float32)
    total = tl.zeros([BC], tl.float32)
    for step in range(LOOP):
        p = (block * LOOP + step) * BP + tl.arange(0, BP)
        n, h, w = place(p, HO, WO)
        row, column = h * STRIDE + down, w * STRIDE + right
        inside = (p < P) & (row >= 0) & (row < HI) & (column >= 0) & (column < WI)
        valid = inside[:, None] & here[None, :]
        at = x + g % maps * x_group + ((n * HI + row) * WI + column)[:, None] * C + c[None, :]
        v = ready(tl.load(at, mask=valid, other=0.0).to(tl.float32), valid, a, b, PRE)
        d = tl.load(grad + (g * P + p[:, None]) * C + c[None, :], mask=valid, other=0.0).to(tl.float32)
        total += tl.sum(v * d, 0)
    to = part + block.to(tl.int64) * row_size + tl.load(places + g) + c * (side * side) + tap
    tl.store(to, total, mask=here)
