"""Plain convolutional networks for small images: three stages of two layers, 15,552 architectures.

The default is what one would write by hand: 3x3 convolutions, a max-pool between stages, twice the channels
from one stage to the next. A second layer may be a residual block, or be left out.
"""

from functools import partial

from torch import Tensor, nn

from nas.space.choosers import Candidates, Chooser
from nas.space.space import Space

STAGES = 3
DEFAULT = {"layer0": "conv_3x3", "layer1": "conv_3x3", "pool": "max_pool"}


def convnet(width: int = 16, stem_stride: int = 1, classes: int = 10, in_channels: int = 3) -> Space:
    """Images `[B, in_channels, H, W]` to `[B, classes]`.

    width: channels of the first of three stages. stem_stride: for large images.
    """

    def build(choose: Chooser) -> nn.Module:
        layers: list[nn.Module] = [nn.AvgPool2d(stem_stride // 2, ceil_mode=True)] if stem_stride > 2 else []
        c_in = in_channels
        for stage in range(STAGES):
            c_out, stride = width << stage, 1 if stage else min(stem_stride, 2)
            layers.append(choose.op(f"stage{stage}/layer0", first(c_in, c_out, stride)))
            layers.append(choose.op(f"stage{stage}/layer1", second(c_out)))
            if stage < STAGES - 1:
                layers.append(choose.op(f"stage{stage}/pool", pools(c_out)))
            c_in = c_out
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))

    default = {
        f"stage{stage}/{name}": option
        for stage in range(STAGES)
        for name, option in DEFAULT.items()
        if name != "pool" or stage < STAGES - 1
    }
    return Space("convnet", build, default=default)


def first(c_in: int, c_out: int, stride: int) -> Candidates:
    """Layers that change the number of channels."""
    return {
        "conv_3x3": partial(conv, c_in, c_out, 3, stride),
        "conv_5x5": partial(conv, c_in, c_out, 5, stride),
        "sep_conv_5x5": partial(separable, c_in, c_out, 5, stride),
    }


def second(channels: int) -> Candidates:
    """Layers that do not."""
    return {
        "skip_connect": nn.Identity,
        "conv_3x3": partial(conv, channels, channels, 3),
        "res_conv_3x3": partial(Residual, channels, 3),
        "res_sep_conv_5x5": partial(Residual, channels, 5),
    }


def pools(channels: int) -> Candidates:
    """Layers that halve the resolution."""
    return {
        "max_pool": partial(nn.MaxPool2d, 2, ceil_mode=True),
        "avg_pool": partial(nn.AvgPool2d, 2, ceil_mode=True),
        "conv_3x3": partial(conv, channels, channels, 3, 2),
    }


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Module:
    """Convolution, batch-norm, ReLU."""
    layer = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out), nn.ReLU())


def separable(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Module:
    """Depthwise and 1x1 convolution, batch-norm, ReLU."""
    depthwise = nn.Conv2d(c_in, c_in, kernel, stride, padding=kernel // 2, groups=c_in, bias=False)
    return nn.Sequential(depthwise, conv(c_in, c_out, 1))


class Residual(nn.Module):
    """A layer beside a shortcut: a convolution of 3x3, a separable one of 5x5."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.body = (conv if kernel == 3 else separable)(channels, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same."""
        out: Tensor = x + self.body(x)
        return out
