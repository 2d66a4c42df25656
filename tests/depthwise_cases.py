"""Depthwise convolutions to check kernels with: every kind of kernel, odd sizes, odd and many channels."""

import itertools
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from nas.oneshot.fused.kernels import native
from nas.oneshot.fused.kernels.maps import Norm, Source, Window


@dataclass(frozen=True)
class Case:
    """One convolution of some operations; sides: (height, width) of the map that it reads."""

    kernel: int
    dilation: int
    stride: int
    pre: int
    channels: int
    shared: bool
    sides: tuple[int, int]
    dtype: torch.dtype = torch.float32
    groups: int = 2
    batch: int = 2
    device: str = "cpu"

    def given(self):
        """Source, weight, window, and the gradient of the outcome."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(shape, generator=generator).to(self.device)

        height, width = self.sides
        after = (-(-height // self.stride), -(-width // self.stride))
        window = Window(self.kernel, self.stride, self.dilation, self.sides, after, self.batch)
        x = normal(self.groups, window.inputs, self.channels).to(self.dtype)
        mean, inv = normal(self.groups, self.channels), normal(self.groups, self.channels).abs() + 0.5
        norm = Norm(mean, inv, inv) if self.pre == 2 else None
        source = Source(x[0] if self.shared else x, relu=self.pre == 1, norm=norm)
        weight = normal(self.groups, self.kernel**2, self.channels)
        grad = normal(self.groups, window.outputs, self.channels).to(self.dtype)
        return source, weight, window, grad

    def computed(self):
        """Outcome and gradients by the kernels in CUDA C++."""
        source, weight, window, grad = self.given()
        out = native.depthwise(source, weight, window)
        return [out, *native.depthwise_gradients(grad, source, weight, window, wanted=(True, True))]

    def expected(self):
        """Outcome, gradient of what is read but for the scale of a norm, and of the weights, in float64."""
        source, weight, _, grad = self.given()
        x = source.x.double().requires_grad_()
        weight = weight.double().requires_grad_()
        read = x.expand(self.groups, *x.shape[-2:])
        if source.norm is not None:
            read = (read - source.norm.mean.double()[:, None]) * source.norm.inv.double()[:, None]
        if self.pre:
            read = read.relu()
        maps = read.view(self.groups, self.batch, *self.sides, -1).permute(1, 0, 4, 2, 3).flatten(1, 2)
        taps = weight.transpose(1, 2).reshape(-1, 1, self.kernel, self.kernel)
        padding = self.kernel // 2 * self.dilation
        out = F.conv2d(maps, taps, None, self.stride, padding, self.dilation, len(taps))
        out = out.unflatten(1, (self.groups, -1)).permute(1, 0, 3, 4, 2).reshape(grad.shape)
        dx, dw = torch.autograd.grad(out, [x, weight], grad.double())
        if source.norm is not None:
            dx = dx / source.norm.inv.double()[:, None]
        return [out.detach(), dx.view(-1, *dx.shape[-2:]), dw]

    def check(self, found):
        """Whether outcomes are those of float64, but for the rounding of maps."""
        assert [a.dtype for a in found] == [self.dtype, self.dtype, torch.float32]
        of_maps = 1e-5 if self.dtype == torch.float32 else 3e-3
        for exact, own, limit in zip(self.expected(), found, (of_maps, of_maps, 1e-5), strict=True):
            assert (exact - own.double()).norm() <= limit * exact.norm(), self


def cases(device="cpu"):
    """Every kind of kernel on three sizes; a map with a norm of each operation is not shared."""
    kinds = itertools.product((3, 5, 7), (1, 2), (1, 2), (0, 1, 2), (3, 4))
    for number, (kernel, dilation, stride, pre, channels) in enumerate(kinds):
        for i, sides in enumerate([(5, 11), (6, 9), (7, 3)]):
            shared = pre < 2 and (number // 2 + i) % 2 == 0
            yield Case(kernel, dilation, stride, pre, channels, shared, sides, device=device)
    for kernel, stride in itertools.product((3, 5, 7), (1, 2)):
        # Strips that end with the row, more channels than a tile, more strips than a block; bfloat16.
        plain = Case(kernel, 1, stride, 1, 6, shared=True, sides=(4, 16), groups=3, device=device)
        yield plain
        yield replace(plain, pre=2, channels=70, shared=False, sides=(8, 8), groups=2, batch=5)
        yield replace(plain, dilation=2, sides=(5, 11), dtype=torch.bfloat16)
        yield replace(plain, channels=3, sides=(5, 11), dtype=torch.bfloat16)
