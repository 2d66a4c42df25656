"""A space whose decisions lie within an option of others."""

from torch import nn

from nas import Cell, Space
from nas.space.ops import candidates


def nested_space(*, in_channels=3, classes=5):
    """A cell whose edges offer a convolution with a choice of its own inside."""

    def build(choose):
        def doubled():
            inner = choose.op("inner", candidates(["nor_conv_1x1", "nor_conv_3x3"], 4, 4))
            return nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), inner)

        options = candidates(["none", "skip_connect"], 4, 4) | {"doubled": doubled}
        return nn.Sequential(
            nn.Conv2d(in_channels, 4, 1),
            nn.BatchNorm2d(4),
            Cell("cell", 1, 2, lambda i, j: choose.op(f"{i}->{j}", options)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, classes),
        )

    return Space("nested", build)
