"""The cells of NAS-Bench-201 in one stage instead of three: a third of the work for what is about methods."""

from torch import nn

from nas.space.cell import Cell
from nas.space.ops import candidates
from nas.space.space import Space
from nas.spaces.nasbench201 import OPTIONS

PATH = f"{__file__}:one_stage"
"""How it is named, so that it is made again with more cells."""


def one_stage(width=4, cells=1, classes=10, in_channels=1):
    """Images `[B, in_channels, H, W]` to `[B, classes]`."""

    def build(choose):
        options = candidates(OPTIONS, width, width)
        stage = [Cell("cell", 1, 3, lambda i, j: choose.op(f"{i}->{j}", options)) for _ in range(cells)]
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
            *stage,
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(width, classes),
        )

    return Space("one_stage", build)
