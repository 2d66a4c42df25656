"""A small space for tests and for learning: one cell of two nodes, 27 architectures, a known best one.

`score` rates an architecture without training, so that a searcher can be watched finding `OPTIMUM`.
"""

from torch import nn

from nas.space.cell import Cell
from nas.space.choosers import Chooser
from nas.space.ops import candidates
from nas.space.space import Space
from nas.types import Genotype

OPTIONS = ("skip_connect", "avg_pool_3x3", "nor_conv_3x3")
OPTIMUM = (2, 2, 2)


def toy(width: int = 8, classes: int = 10, in_channels: int = 1) -> Space:
    """Images `[B, in_channels, H, W]` to `[B, classes]`."""

    def build(choose: Chooser) -> nn.Module:
        options = candidates(OPTIONS, width, width)
        cell = Cell("cell", 1, 2, lambda i, j: choose.op(f"{i}->{j}", options))
        return nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            cell,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, classes),
        )

    return Space("toy", build, default=OPTIMUM)


def score(genotype: Genotype) -> float:
    """How near an architecture is to the best one: the share of edges with the right operation, in [0, 1]."""
    return sum(a == b for a, b in zip(genotype, OPTIMUM, strict=True)) / len(OPTIMUM)
