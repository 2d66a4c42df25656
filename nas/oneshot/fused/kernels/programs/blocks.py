"""What Triton programs that sum over pixels have in common: blocks, which the program that is done last adds.

Each program stores the sums of its block and counts itself on a ticket; whichever is the last of a tile of
channels adds them up in their order, so the outcome does not depend on which it is. On a GPU it sees what the
others have stored: they count with *release*, after a barrier of all their threads; it goes on with
*acquire*, before a barrier of its own, and reads past the cache of its multiprocessor (`.cg`). To acquire
empties that cache, in which programs beside it keep their maps, so no others do.

It sets the ticket back to 0, for the next launch or the replay of a graph. Launches that use the same tickets
have to follow each other, as those of one stream do.
"""

import triton
import triton.language as tl


@triton.jit
def done_last(ticket, programs):
    """Whether this is the last of so many programs that ask; it then reads what the others have stored.

    The ticket is 0 before they ask, and after it.
    """
    tl.debug_barrier()  # what any thread has stored comes before the ticket that one of them takes
    last = tl.atomic_add(ticket, 1, sem="release", scope="gpu") == programs - 1
    if last:
        tl.atomic_xchg(ticket, 0, sem="acquire", scope="gpu")
        tl.debug_barrier()  # what any thread reads comes after the ticket that one of them has seen
    return last


@triton.jit
def add_blocks(part, BLOCKS: tl.constexpr, total, c, C: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr):
    """total[0 and 1, c] = Σ_block part[block, 0 and 1, c]."""
    first = tl.zeros([BB, BC], tl.float32)
    second = tl.zeros([BB, BC], tl.float32)
    for start in range(0, BLOCKS, BB):
        block = start + tl.arange(0, BB)
        valid = (block < BLOCKS)[:, None] & (c < C)[None, :]
        at = part + block[:, None] * 2 * C + c[None, :]
        first += tl.load(at, mask=valid, other=0.0, cache_modifier=".cg")
        second += tl.load(at + C, mask=valid, other=0.0, cache_modifier=".cg")
    tl.store(total + c, tl.sum(first, 0), mask=c < C)
    tl.store(total + C + c, tl.sum(second, 0), mask=c < C)


@triton.jit
def leave_moments(v, valid, pixels, part, c, C: tl.constexpr):
    """part[0 and 1, c] = the mean of a block of so many pixels, and the sum of squares around it."""
    mean = tl.sum(tl.where(valid, v, 0.0), 0) / pixels
    off = tl.where(valid, v - mean[None, :], 0.0)
    tl.store(part + c, mean, mask=c < C)
    tl.store(part + C + c, tl.sum(off * off, 0), mask=c < C)


@triton.jit
def normalise(
    part, BLOCKS: tl.constexpr, mean, var, inv, scale, shift, weight, bias, eps, P, c, C: tl.constexpr,
    BP: tl.constexpr, AFFINE: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Mean, unbiased variance and 1 / √(biased variance + eps) of all pixels, from moments of blocks of BP.

    Chan et al. 1979: nothing cancels, as it does in a difference of sums. Then scale and shift, which do what
    the batch-norm does; where AFFINE, weight and bias are its own.
    """
    here = c < C
    total = tl.zeros([BB, BC], tl.float32)
    for start in range(0, BLOCKS, BB):
        block = start + tl.arange(0, BB)
        valid = (block < BLOCKS)[:, None] & here[None, :]
        count = tl.minimum(P - block * BP, BP)[:, None]
        at = part + block[:, None] * 2 * C + c[None, :]
        total += count * tl.load(at, mask=valid, other=0.0, cache_modifier=".cg")
    m = tl.sum(total, 0) / P
    squares = tl.zeros([BB, BC], tl.float32)
    for start in range(0, BLOCKS, BB):
        block = start + tl.arange(0, BB)
        valid = (block < BLOCKS)[:, None] & here[None, :]
        count = tl.minimum(P - block * BP, BP)[:, None]
        at = part + block[:, None] * 2 * C + c[None, :]
        away = tl.load(at, mask=valid, other=0.0, cache_modifier=".cg") - m[None, :]
        within = tl.load(at + C, mask=valid, other=0.0, cache_modifier=".cg")
        squares += tl.where(valid, within + count * away * away, 0.0)
    off = tl.sum(squares, 0)
    tl.store(mean + c, m, mask=here)
    tl.store(var + c, off / tl.maximum(P - 1, 1), mask=here)
    a = 1.0 / tl.sqrt(off / P + eps)
    tl.store(inv + c, a, mask=here)
    b = tl.zeros([BC], tl.float32)
    if AFFINE:
        a *= tl.load(weight + c, mask=here, other=0.0).to(tl.float32)
        b = tl.load(bias + c, mask=here, other=0.0).to(tl.float32)
    tl.store(scale + c, a, mask=here)
    tl.store(shift + c, b - m * a, mask=here)
