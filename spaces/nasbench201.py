"""NAS-Bench-201 (Dong & Yang, ICLR 2020): 15,625 cells of 4 nodes, 6 edges and 5 operations.

The skeleton is the published one (§2.1): a 3x3 stem, three stages of `cells` cells with a residual block of
stride 2 between stages, then batch-norm, ReLU, global pooling and a linear classifier.
"""

import re

from torch import Tensor, nn

from nas.errors import SpaceError, unknown
from nas.space.cell import Cell
from nas.space.choosers import Chooser
from nas.space.ops import candidates, relu_conv_bn, stem
from nas.space.space import Notation, Space
from nas.types import Genotype

OPTIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
TERM = r"\|([^|~+]+)~([0-9])"
FORM = re.compile(rf"{TERM}\|\+{TERM}{TERM}\|\+{TERM}{TERM}{TERM}\|")
RESNET = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
"""The residual cell that the paper compares with (table 5): 93.97 % on CIFAR-10, 67 of 15,625 are better."""
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def nasbench201(
    width: int = 16, cells: int = 5, classes: int = 10, in_channels: int = 3, stem_stride: int = 1
) -> Space:
    """Images `[B, in_channels, H, W]` to `[B, classes]`; `width` channels in the first of three stages.

    stem_stride: for large images.
    """

    def build(choose: Chooser) -> nn.Module:
        def stage(channels: int) -> list[nn.Module]:
            options = candidates(OPTIONS, channels, channels)
            return [Cell("cell", 1, 3, lambda i, j: choose.op(f"{i}->{j}", options)) for _ in range(cells)]

        return nn.Sequential(
            stem(in_channels, width, stem_stride),
            *stage(width),
            ResidualBlock(width, 2 * width),
            *stage(2 * width),
            ResidualBlock(2 * width, 4 * width),
            *stage(4 * width),
            nn.Sequential(nn.BatchNorm2d(4 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(4 * width, classes),
        )

    return Space("nasbench201", build, notation=Notation(to_string, from_string), default=from_string(RESNET))


class ResidualBlock(nn.Module):
    """A basic residual block of stride 2 whose shortcut is an average pool and a 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            relu_conv_bn(c_in, c_out, 2, kernel=3), relu_conv_bn(c_out, c_out, kernel=3)
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2, ceil_mode=True), nn.Conv2d(c_in, c_out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, c_in, H, W]` to `[B, c_out, ceil(H / 2), ceil(W / 2)]`."""
        out: Tensor = self.body(x) + self.shortcut(x)
        return out


def to_string(genotype: Genotype) -> str:
    """The benchmark's architecture string, `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
    terms = [f"{OPTIONS[option]}~{src}" for option, (src, _) in zip(genotype, EDGES, strict=True)]
    return f"|{terms[0]}|+|{terms[1]}|{terms[2]}|+|{terms[3]}|{terms[4]}|{terms[5]}|"


def from_string(text: str) -> Genotype:
    """The genotype of an architecture string.

    Raises:
        SpaceError: when the text has not the benchmark's form or names another operation.
    """
    match = FORM.fullmatch(text.strip())
    ops, sources = (match.groups()[::2], match.groups()[1::2]) if match is not None else ((), ())
    if [int(src) for src in sources] != [src for src, _ in EDGES]:
        raise SpaceError(f"got {text!r}, wanted the form '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|'")
    for op in ops:
        if op not in OPTIONS:
            raise SpaceError(unknown("NAS-Bench-201 operation", op, OPTIONS))
    return tuple(OPTIONS.index(op) for op in ops)


def unique_string(genotype: Genotype) -> str:
    """The published name of a cell up to isomorphism: 6,466 over all 15,625 (Dong & Yang 2020, §2.1).

    Follows the benchmark's code to the letter: a node is the sorted sum of its inputs' names, `skip_connect`
    passes a name on, and `none`, or an edge from a first node without input, is `#`.
    """
    nodes = {0: "0"}
    for dst in (1, 2, 3):
        terms = []
        for option, (src, node) in zip(genotype, EDGES, strict=True):
            if node != dst:
                continue
            if OPTIONS[option] == "none" or nodes[src] == "#":
                terms.append("#")
            elif OPTIONS[option] == "skip_connect":
                terms.append(nodes[src])
            else:
                terms.append(f"({nodes[src]})@{OPTIONS[option]}")
        nodes[dst] = "+".join(sorted(terms))
    return nodes[3]
