"""Triton programs of nodes: sums of normalised maps, and their gradients.

Maps are [P, C] as in `pixels`, one after the other in slots. A contribution is what one operation on one
edge brings into a node; table[contribution, 0] is the slot of its map, [.., 1] and [.., 2] the number of the
node and of the edge that it belongs to, which are the rows of gradients, [.., 3] whether it is normalised.
Not yet run on a GPU.

Where ON, only some maps are computed: slots of which on[slot] is not 0, and contributions of which
chosen[contribution] is not 0. Others are not read, whatever is there.
"""

import triton
import triton.language as tl

from nas.oneshot.fused.kernels.programs.blocks import add_blocks, done_last


@triton.jit
def node_forward(
    raw, scale, shift, weights, table, states, masks, rest, out, chosen, P, size, C: tl.constexpr,
    KEPT: tl.constexpr, MASKED: tl.constexpr, REST: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """out = Σ_k weights[k] masks (scale raw + shift) of KEPT slots + Σ_k weights[k] masks states + rest.

    masks[edge, image]: read where MASKED, for images of `size` pixels. rest, the sum of other maps, is read
    where REST, and has been masked. Grid: pixels, channels.
    """
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    valid = (p < P)[:, None] & here[None, :]
    place = p[:, None] * C + c[None, :]
    image = p // size
    total = tl.zeros([BP, BC], tl.float32)
    for k in range(KEPT):
        slot = tl.load(table + 4 * k).to(tl.int64)
        normed = here & (tl.load(table + 4 * k + 3) > 0)
        read = valid
        if ON:
            live = tl.load(chosen + k) != 0
            normed = normed & live
            read = read & live
        a = tl.load(scale + slot * C + c, mask=normed, other=1.0)
        b = tl.load(shift + slot * C + c, mask=normed, other=0.0)
        v = tl.load(raw + slot * P * C + place, mask=read, other=0.0).to(tl.float32)
        v = (v * a[None, :] + b[None, :]) * tl.load(weights + k).to(tl.float32)
        if MASKED:
            edge = tl.load(table + 4 * k + 2)
            v *= tl.load(masks + edge * (P // size) + image, mask=p < P, other=0.0)[:, None]
        total += v
    for i in tl.static_range(len(states)):
        read = valid
        if ON:
            read = read & (tl.load(chosen + KEPT + i) != 0)
        v = tl.load(states[i] + place, mask=read, other=0.0).to(tl.float32)
        v *= tl.load(weights + KEPT + i).to(tl.float32)
        if MASKED:
            edge = tl.load(table + 4 * (KEPT + i) + 2)
            v *= tl.load(masks + edge * (P // size) + image, mask=p < P, other=0.0)[:, None]
        total += v
    if REST:
        total += tl.load(rest + place, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=valid)


@triton.jit
def node_sums(
    raw, mean, inv, table, states, grad, part, total, tickets, chosen, P, kept, C: tl.constexpr,
    BLOCKS: tl.constexpr, ROW: tl.constexpr, ON: tl.constexpr, LOOP: tl.constexpr, BB: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """total[k, 0 and 1, c] = Σ_p grad and Σ_p grad x̂, with x̂ = (raw - mean) inv, or the state.

    part[k, block, ..] are those of blocks; grad is that of the node or edge in column ROW of the table. Grid:
    blocks, channels, contributions.
    """
    k = tl.program_id(2).to(tl.int64)
    block = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    if ON:
        if tl.load(chosen + k) == 0:
            place = total + k * 2 * C + c
            tl.store(place, tl.zeros([BC], tl.float32), mask=here)
            tl.store(place + C, tl.zeros([BC], tl.float32), mask=here)
            return
    slot = tl.load(table + 4 * k).to(tl.int64)
    row = tl.load(table + 4 * k + ROW).to(tl.int64)
    normed = here & (tl.load(table + 4 * k + 3) > 0)
    m = tl.load(mean + slot * C + c, mask=normed, other=0.0)
    f = tl.load(inv + slot * C + c, mask=normed, other=1.0)
    y = raw + slot * P * C
    for i in tl.static_range(len(states)):
        if k == kept + i:
            y = states[i]
    first = tl.zeros([BC], tl.float32)
    second = tl.zeros([BC], tl.float32)
    for step in range(LOOP):
        p = (block * LOOP + step) * BP + tl.arange(0, BP)
        valid = (p < P)[:, None] & here[None, :]
        place = p[:, None] * C + c[None, :]
        d = tl.load(grad + row * P * C + place, mask=valid, other=0.0).to(tl.float32)
        v = tl.load(y + place, mask=valid, other=0.0).to(tl.float32)
        first += tl.sum(d, 0)
        second += tl.sum(d * (v - m[None, :]) * f[None, :], 0)
    place = part + (k * BLOCKS + block) * 2 * C + c
    tl.store(place, first, mask=here)
    tl.store(place + C, second, mask=here)
    if done_last(tickets + k * tl.cdiv(C, BC) + tl.program_id(1), BLOCKS):
        add_blocks(part + k * BLOCKS * 2 * C, BLOCKS, total + k * 2 * C, c, C, BB, BC)


@triton.jit
def branch_gradient(
    raw, mean, inv, scale, weights, table, places, sums, grad, out, chosen, first, P, C: tl.constexpr,
    ROW: tl.constexpr, ON: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """out[slot - first] = weights[k] scale (grad - sums[k, 0] / P - x̂ sums[k, 1] / P), k = places[z].

    slot: that of contribution k. All branches into a node read the one gradient of it; sums are those of
    `node_sums`. Grid: pixels, channels, places.
    """
    k = tl.load(places + tl.program_id(2))
    g = tl.load(table + 4 * k).to(tl.int64)
    if ON:
        if tl.load(chosen + k) == 0:
            return
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    here = c < C
    valid = (p < P)[:, None] & here[None, :]
    place = p[:, None] * C + c[None, :]
    row = tl.load(table + 4 * k + ROW).to(tl.int64)
    m = tl.load(mean + g * C + c, mask=here, other=0.0)
    i = tl.load(inv + g * C + c, mask=here, other=0.0)
    a = tl.load(sums + k * 2 * C + c, mask=here, other=0.0) / P
    b = tl.load(sums + (k * 2 + 1) * C + c, mask=here, other=0.0) / P
    f = tl.load(scale + g * C + c, mask=here, other=0.0) * tl.load(weights + k).to(tl.float32)
    d = tl.load(grad + row * P * C + place, mask=valid, other=0.0).to(tl.float32)
    v = tl.load(raw + g * P * C + place, mask=valid, other=0.0).to(tl.float32)
    v = (d - a[None, :] - (v - m[None, :]) * i[None, :] * b[None, :]) * f[None, :]
    tl.store(out + (g - first) * P * C + place, v.to(out.dtype.element_ty), mask=valid)
