"""Depthwise convolutions to check kernels with: kinds alone and together, odd sizes, odd or many channels."""

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from nas.oneshot.fused.kernels import native
from nas.oneshot.fused.kernels.maps import Drawn, Norm, Source, Taps, Window

ALL = ((3, 1), (5, 1), (3, 2), (5, 2))
KINDS = (((3, 1),), ((5, 2),), ((7, 1),), ALL, ((7, 2), (3, 2)))


@dataclass(frozen=True)
class Case:
    """Convolutions of some operations in one launch.

    kinds: (side, dilation) of each kind, in turns those of the operations. sides: (height, width) of the maps
    that are read. drawn: the operations that are computed, all where None. blocks: of a sum over pixels.
    maps: how many they share.
    """

    kinds: tuple[tuple[int, int], ...]
    stride: int
    pre: int
    channels: int
    shared: bool
    sides: tuple[int, int]
    dtype: torch.dtype = torch.float32
    groups: int = 2
    batch: int = 2
    drawn: tuple[int, ...] | None = None
    blocks: int = 3
    device: str = "cpu"
    maps: int = 1

    @property
    def computed_ones(self):
        """The operations that are computed."""
        return list(range(self.groups) if self.drawn is None else self.drawn)

    @property
    def kind(self):
        """[groups] which kind each is: the last is of the first."""
        return [(self.groups - 1 - g) % len(self.kinds) for g in range(self.groups)]

    @property
    def spans(self):
        """[groups] from where to where the kernel of each is in a row of numbers, with a gap before each."""
        sizes = [self.channels * self.kinds[kind][0] ** 2 + 1 for kind in self.kind]
        return [(end - size + 1, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]

    @property
    def row(self):
        """Numbers in a row, some behind the last."""
        return self.spans[-1][1] + 2

    def given(self):
        """Source, taps, window, and the gradient of the outcome; the taps' `like` is a row of all kernels."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(shape, generator=generator).to(self.device)

        def whole(numbers):
            return torch.tensor(numbers, dtype=torch.int32, device=self.device)

        height, width = self.sides
        after = (-(-height // self.stride), -(-width // self.stride))
        window = Window(self.stride, self.sides, after, self.batch)
        x = normal(self.groups, window.inputs, self.channels).to(self.dtype)
        scale, shift = normal(self.groups, self.channels) + 0.1, normal(self.groups, self.channels)
        # Nothing but what they are together is read.
        norm, drawn = Norm(*3 * [scale / 0], scale, shift) if self.pre == 2 else None, None
        if self.drawn is not None:
            order = [*self.drawn, *(g for g in range(self.groups) if g not in self.drawn)]
            live = [int(place < len(self.drawn)) for place in range(self.groups)]
            # One program more than is needed, where there is one.
            drawn = Drawn(whole(order), whole(live), len(self.drawn) + 1)
        read = x if not self.shared else x[0] if self.maps == 1 else x[: self.maps]
        source = Source(read, relu=self.pre == 1, norm=norm, drawn=drawn, shared=self.shared)
        row, starts = normal(self.row), [start for start, _ in self.spans]
        addresses = torch.tensor([row[start:].data_ptr() for start in starts], device=self.device)
        kind, places = whole(self.kind), whole(starts)
        taps = Taps(addresses, row, self.kinds, kind, places, self.channels, self.channels)
        return source, taps, window, normal(self.groups, window.outputs, self.channels).to(self.dtype)

    def part(self):
        """Room for the gradients of kernels as a caller gives it: zeros where not all are computed."""
        part = torch.full((self.blocks, self.row), torch.nan, device=self.device)
        if self.drawn is not None:
            for start, stop in self.spans:
                part[:, start:stop] = 0
        return part

    def computed(self, kernels=native):
        """Outcome and gradients by kernels in CUDA C++ or others; the gradients of kernels as a row."""
        source, taps, window, grad = self.given()
        out, part = kernels.depthwise(source, taps, window), self.part()
        dx = kernels.depthwise_gradients(grad, source, taps, window, for_x=True, part=part)
        return [out, dx, part.sum(0)]

    def expected(self):
        """Outcome, gradient of what is read but for the scale of a norm, and of the kernels, in float64.

        What is not computed is not a number; of the kernels it is zero.
        """
        source, taps, window, grad = self.given()
        x, row = source.x.double().requires_grad_(), taps.like.double().requires_grad_()
        out = torch.full(grad.shape, torch.nan, dtype=torch.float64, device=self.device)
        total = 0 * (x.sum() + row.sum())
        for g in self.computed_ones:
            read, (side, dilation) = x.view(-1, *x.shape[-2:])[g % source.maps], self.kinds[self.kind[g]]
            if source.norm is not None:
                read = read * source.norm.scale[g].double() + source.norm.shift[g].double()
            maps = (read.relu() if self.pre else read).view(self.batch, *self.sides, -1).permute(0, 3, 1, 2)
            kernel = row[slice(*self.spans[g])].view(-1, 1, side, side)
            padding = side // 2 * dilation
            y = F.conv2d(maps, kernel, None, self.stride, padding, dilation, len(kernel))
            y = y.permute(0, 2, 3, 1).reshape(window.outputs, -1)
            out[g], total = y.detach(), total + (y * grad[g]).sum()
        dx, dw = torch.autograd.grad(total, [x, row])
        if source.norm is not None:
            dx = dx / source.norm.scale.double()[:, None]
        dx = dx.view(-1, *dx.shape[-2:])
        lacking = out.isnan().all(2).all(1)
        lacking = lacking.all(0, keepdim=True) if self.shared else lacking
        dx = dx.masked_fill(lacking.view(-1, 1, 1), torch.nan)
        gaps = torch.ones_like(dw, dtype=torch.bool)
        for start, stop in self.spans:
            gaps[start:stop] = False
        return [out, dx, dw.masked_fill(gaps, torch.nan)]

    def same(self, found, expected):
        """Whether outcomes are equal, bit by bit, but for what is not computed."""
        return all(map(torch.equal, self._written(found), self._written(expected)))

    def _written(self, found):
        out, dx, row = found
        ones = self.computed_ones
        dx = dx[: self.maps * min(1, len(ones))] if self.shared else dx[ones]
        return [out[ones], dx, *(row[slice(*self.spans[g])] for g in ones)]

    def check(self, found, *, poisoned=False):
        """Whether outcomes are those of float64, but for the rounding of maps.

        poisoned: whether what is not computed must be no number, as it was before.
        """
        assert [a.dtype for a in found] == [self.dtype, self.dtype, torch.float32]
        of_maps = 1e-5 if self.dtype == torch.float32 else 3e-3
        for exact, own, limit in zip(self.expected(), found, (of_maps, of_maps, 1e-5), strict=True):
            assert exact.shape == own.shape
            if poisoned or exact.dim() == 1:
                assert torch.equal(exact.isnan(), own.isnan()), self
            difference = torch.where(exact.isnan(), 0, exact - own.double())
            assert difference.norm() <= limit * exact.nan_to_num().norm(), self


def cases(device="cpu"):
    """Kinds alone and together on three sizes; a map with a norm of each operation is not shared."""
    products = itertools.product(KINDS, (1, 2), (0, 1, 2), (3, 4))
    for number, (kinds, stride, pre, channels) in enumerate(products):
        for i, sides in enumerate([(5, 11), (6, 9), (7, 3)]):
            shared = pre < 2 and (number // 2 + i) % 2 == 0
            case = Case(kinds, stride, pre, channels, shared, sides, device=device, blocks=i + 1)
            some = {"groups": len(kinds) + 1} if i < 2 else {"drawn": (1,) if number % 8 else ()}
            yield replace(case, **some)
    for kinds, stride in itertools.product((*KINDS[:3], ALL), (1, 2)):
        # Strips that end with the row, more channels than a tile, more strips than a block; bfloat16.
        plain = Case(kinds, stride, 1, 6, shared=True, sides=(4, 16), groups=5, device=device)
        yield plain
        yield replace(plain, maps=2, groups=6, sides=(5, 7))
        # Of the map that comes second nothing is drawn.
        yield replace(plain, maps=2, groups=4, sides=(5, 7), pre=0, drawn=(2, 0))
        yield replace(plain, pre=2, channels=70, shared=False, sides=(8, 8), groups=2, batch=5, blocks=4)
        yield replace(plain, sides=(5, 11), dtype=torch.bfloat16, drawn=(3, 0, 4))
        yield replace(plain, channels=37, sides=(5, 11), shared=False, dtype=torch.bfloat16, drawn=(4, 1))
