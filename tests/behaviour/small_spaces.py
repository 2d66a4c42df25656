"""Spaces made by hand, as a user writes them, small enough that a search of one takes half a second."""

import numpy as np
import torch
from torch import nn

import nas

OPTIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
CELL, SIGNALS = f"{__file__}:cell", f"{__file__}:signals"
"""The names of `cell` and `signals`, by which they can be made again with more cells or elsewhere."""


def cell(width=4, cells=1, classes=10, in_channels=1):
    """Cells of three nodes and six edges in a single stage, with an option of no connection."""

    def build(choose):
        options = nas.candidates(OPTIONS, width, width)
        stage = [nas.Cell("cell", 1, 3, lambda i, j: choose.op(f"{i}->{j}", options)) for _ in range(cells)]
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)),
            *stage,
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(width, classes),
        )

    return nas.Space("cell", build)


class Blank(nn.Module):
    """A map of zeros, which the engine does not know for one."""

    def forward(self, x):
        return torch.zeros_like(x)


class Noise(nn.Module):
    """A map that has to do with the place of an image in its batch, and nothing with the image."""

    def forward(self, x):
        places = torch.arange(x.numel(), device=x.device, dtype=torch.float64)
        return (2 * torch.sin(12.9898 * places**1.5)).to(x.dtype).view_as(x)


def signals(width=4, cells=1, classes=3, in_channels=1):
    """Two places one after the other; of their options only a convolution lets the images through."""

    def build(choose):
        makers = {
            "noise": lambda c_in, c_out, stride: Noise(),
            "convolution": lambda c_in, c_out, stride: nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
            ),
            "blank": lambda c_in, c_out, stride: Blank(),
        }
        options = {name: nas.Candidate(make, width, width) for name, make in makers.items()}
        body = [
            nas.Cell("cell", 1, 1, lambda i, j, place=place: choose.op(f"place{place}", options))
            for place in range(2)
            for _ in range(cells)
        ]
        head = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, classes)]
        return nn.Sequential(nn.Conv2d(in_channels, width, 1), *body, *head)

    return nas.Space("signals", build)


def chain(names="zbya", width=3, classes=3, in_channels=1):
    """A chain without cells, its decisions named against the alphabet, of two and three options in turn."""

    def build(choose):
        options = nas.candidates(("nor_conv_1x1", "skip_connect", "avg_pool_3x3"), width, width)
        fewer = {name: options[name] for name in ("nor_conv_1x1", "skip_connect")}
        body = [choose.op(name, options if i % 2 else fewer) for i, name in enumerate(names)]
        head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes)]
        return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), *body, *head)

    return nas.Space("chain", build)


def depths(width=4, classes=3, in_channels=1):
    """One to three blocks; the operations of blocks that are not there mean nothing: 2 + 4 + 8 networks."""

    def build(choose):
        depth = choose.value("depth", [1, 2, 3])
        options = nas.candidates(("nor_conv_1x1", "nor_conv_3x3"), width, width)
        body = [choose.op(f"block{i}", options) for i in range(depth)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
        return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), *body, *head)

    return nas.Space("depths", build)


def at_most_two(decisions, scores):
    """Keeps the two convolutions that are preferred most to their identities, and no others."""
    gains = [float(row[1] - row[0]) for row in scores]
    wanted = sorted(range(len(gains)), key=lambda i: -gains[i])[:2]
    return tuple(int(i in wanted and gains[i] > 0) for i in range(len(decisions)))


def bounded(blocks=4, width=3, classes=3, in_channels=1):
    """Blocks that are an identity or a convolution, at most two of them the latter: 1 + 4 + 6 networks."""

    def build(choose):
        options = nas.candidates(("skip_connect", "nor_conv_3x3"), width, width)
        body = [choose.op(f"block{i}", options) for i in range(blocks)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
        return nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), *body, *head)

    return nas.Space("bounded", build, at_most_two)


def planted(decisions=6, options=4):
    """A space whose networks nobody trains: an architecture is scored by how it agrees with `OPTIMUM`."""

    def build(choose):
        makers = {f"option{i}": nn.Identity for i in range(options)}
        return nn.Sequential(*[choose.op(f"place{i}", makers) for i in range(decisions)])

    return nas.Space("planted", build)


OPTIMUM = (1, 3, 0, 2, 2, 1)
"""The best architecture of `planted`."""


def agreement(genotype):
    """The share of decisions of `planted` that are as in `OPTIMUM`, in [0, 1]."""
    return float(np.mean([a == b for a, b in zip(genotype, OPTIMUM, strict=True)]))
