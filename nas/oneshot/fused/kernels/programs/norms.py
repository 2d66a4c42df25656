"""Triton programs of batch-norm: gradients between two convolutions, and running statistics.

See `pixels` for what their arguments are.
"""

import triton
import triton.language as tl

from nas.oneshot.fused.kernels.programs.blocks import add_blocks, done_last
from nas.oneshot.fused.kernels.programs.pixels import operation


@triton.jit
def norm_forward(
    y, mean, var, scale, shift, out, where, like, tracked, momentum, P, C: tl.constexpr, FOLLOW: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out = scale y + shift, of [G, P, C]; where FOLLOW, running statistics follow, see `follow`.

    Grid: pixels, channels, groups.
    """
    g = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    valid = (p < P)[:, None] & here[None, :]
    place = (g * P + p[:, None]) * C + c[None, :]
    a = tl.load(scale + g * C + c, mask=here, other=0.0)
    b = tl.load(shift + g * C + c, mask=here, other=0.0)
    v = tl.load(y + place, mask=valid, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
    tl.store(out + place, v.to(out.dtype.element_ty), mask=valid)
    if FOLLOW:
        if tl.program_id(0) == 0:
            _move(where + 4 * g, mean, var, like, tracked, momentum, c, C, tl.program_id(1) == 0)


@triton.jit
def sums(
    grad, y, mean, inv, part, total, tickets, order, live, P, C: tl.constexpr, ON: tl.constexpr,
    BLOCKS: tl.constexpr, LOOP: tl.constexpr, BB: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """total[g, 0 and 1, c] = Σ_p grad and Σ_p grad (y - mean) inv, and part[g, block, ..] those of blocks.

    Grid: blocks, channels, operations.
    """
    z = tl.program_id(2)
    if ON:
        if tl.load(live + z) == 0:
            return
    g = operation(order, z, ON)
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
    place = part + (g * BLOCKS + block) * 2 * C + c
    tl.store(place, first, mask=here)
    tl.store(place + C, second, mask=here)
    if done_last(tickets + g * tl.cdiv(C, BC) + tl.program_id(1), BLOCKS):
        add_blocks(part + g * BLOCKS * 2 * C, BLOCKS, total + g * 2 * C, c, C, BB, BC)


@triton.jit
def norm_gradient(
    grad, y, mean, inv, scale, total, out, order, live, P, C: tl.constexpr, ON: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out = scale (grad - total[0] / P - x̂ total[1] / P), with x̂ = (y - mean) inv and the sums of `sums`.

    Grid: pixels, channels, operations.
    """
    z = tl.program_id(2)
    if ON:
        if tl.load(live + z) == 0:
            return
    g = operation(order, z, ON)
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
    f = tl.load(scale + g * C + c, mask=here, other=0.0)
    v = (d - a[None, :] - v * b[None, :]) * f[None, :]
    tl.store(out + place, v.to(out.dtype.element_ty), mask=valid)


@triton.jit
def follow(where, mean, var, like, tracked, momentum, C, BC: tl.constexpr):
    """Running statistics of norms go towards mean and var of a slot each, and batches are counted.

    where[n] = addresses of the running mean and variance, as `like`, and of the count, as `tracked`; then the
    slot. Grid: channels, norms.
    """
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    own = where + 4 * tl.program_id(1)
    _move(own, mean, var, like, tracked, momentum, c, C, tl.program_id(0) == 0)


@triton.jit
def _move(own, mean, var, like, tracked, momentum, c, C, counting):
    """The same for some channels of the norm of one row; the batch is counted where `counting`."""
    here = c < C
    slot = tl.load(own + 3)
    at = tl.load(own).to(like.dtype) + c
    before = tl.load(at, mask=here, other=0.0)
    now = tl.load(mean + slot * C + c, mask=here, other=0.0)
    tl.store(at, before + momentum * (now - before), mask=here)
    at = tl.load(own + 1).to(like.dtype) + c
    before = tl.load(at, mask=here, other=0.0)
    now = tl.load(var + slot * C + c, mask=here, other=0.0)
    tl.store(at, before + momentum * (now - before), mask=here)
    if counting:
        count = tl.load(own + 2).to(tracked.dtype)
        tl.store(count, tl.load(count) + 1)
