"""What the Triton programs have in common: where a pixel is, how it is read, which operation a program does.

Maps are [P, C], row after row, with P = B * H * W pixels (channels last); those of G operations one after the
other, [G, P, C]. Where they share maps, operation g reads that of number g % maps; they are x_group numbers
apart, and SHARED says how many there are, 0 where each has its own. Sums are in float32; maps are in
the type they have. Channels are tiles of a power of two, some of it unused. Sums over pixels are written
block by block, and added in their order by the caller or by the program that is done last, so that they are
the same on every run.

PRE says what is done to a map while it is read: nothing (0), ReLU (1), or batch-norm and ReLU (2).

Where ON, only some operations are computed, as a mixture knows that was drawn on the device: order[z] is the
operation of program z where live[z] is not 0; where it is, the program and all after it have none.

KINDS are (side, dilation) of all kernels that there are, and kind[g] says which of them an operation has. Its
weights are at addresses[g], as its module keeps them; `like` is any tensor of their type.
"""

import triton
import triton.language as tl


@triton.jit
def place(p, height: tl.constexpr, width: tl.constexpr):
    """Image, line and column of pixels."""
    return p // (width * height), (p // width) % height, p % width


@triton.jit
def ready(v, valid, scale, shift, PRE: tl.constexpr):
    """Values as the layers before a convolution leave them; zero outside of the map."""
    if PRE == 2:
        v = v * scale[None, :] + shift[None, :]
    if PRE >= 1:
        v = tl.maximum(v, 0.0)
    return tl.where(valid, v, 0.0)


@triton.jit
def operation(order, z, ON: tl.constexpr):
    """Which one program z does, where it does any."""
    if ON:
        return tl.load(order + z).to(tl.int64)
    return z.to(tl.int64)


@triton.jit
def side_of(kind, KINDS: tl.constexpr):
    """Side of a kernel of a kind."""
    side = KINDS[0][0]
    for k in tl.static_range(1, len(KINDS)):
        side = tl.where(kind == k, KINDS[k][0], side)
    return side


@triton.jit
def dilation_of(kind, KINDS: tl.constexpr):
    """Dilation of a kernel of a kind."""
    dilation = KINDS[0][1]
    for k in tl.static_range(1, len(KINDS)):
        dilation = tl.where(kind == k, KINDS[k][1], dilation)
    return dilation
