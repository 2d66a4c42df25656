"""Parameters and multiply-accumulates, counted by hand."""

from functools import partial

import pytest
import surface
from torch import nn

import nas

WIDTH, SIDE, CLASSES = 4, 8, 3
PIXELS = SIDE * SIDE


def conv(kernel, *, dilation=1, groups=1, bias=False):
    padding = dilation * (kernel // 2)
    return lambda: nn.Conv2d(WIDTH, WIDTH, kernel, 1, padding, dilation, groups=groups, bias=bias)


KINDS = {
    "identity": (nn.Identity, 0, 0),
    "3x3": (conv(3), 9 * 16, 9 * 16 * PIXELS),
    "1x1 with bias": (conv(1, bias=True), 16 + WIDTH, 16 * PIXELS),
    "two groups": (conv(3, groups=2), 9 * 8, 9 * 8 * PIXELS),
    "each channel": (conv(5, groups=WIDTH), 25 * 4, 25 * 4 * PIXELS),
    "dilated": (conv(3, dilation=2), 9 * 16, 9 * 16 * PIXELS),
    "norm": (partial(nn.BatchNorm2d, WIDTH), 2 * WIDTH, 0),
    "pool": (partial(nn.AvgPool2d, 3, 1, 1), 0, 0),
}
"""By name: what makes an operation on maps of `WIDTH` channels, its parameters and multiply-accumulates."""
REST = (9 * WIDTH + WIDTH + WIDTH * CLASSES + CLASSES, 9 * WIDTH * PIXELS // 4 + WIDTH * CLASSES)
"""Those of a stem of stride 2, 3x3 with bias, behind the operation's map of one channel, and a classifier."""


def one_operation():
    """The operation on four copies of the image, a strided convolution of their first, a classifier."""

    class Copies(nn.Module):
        def forward(self, x):
            return x.repeat(1, WIDTH, 1, 1)

    class First(nn.Module):
        def forward(self, x):
            return x[:, :1]

    def build(choose):
        op = choose.op("operation", {name: make for name, (make, _, _) in KINDS.items()})
        stem = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1)
        return nn.Sequential(
            Copies(), op, First(), stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)
        )

    return nas.Space("one operation", build)


def test_a_search_reports_what_a_hand_counts(tmp_path):
    """For every architecture of a space, in the trials that decide by it and in the final figures."""
    wanted = {"trials": len(KINDS), "objective": ["val_acc", "-macs", "-params"]}
    result = surface.search(tmp_path, "random", space=one_operation(), **wanted)
    assert len(result.history) == len(KINDS)
    found = {result.space.choices(t.genotype)["operation"]: t.metrics for t in result.history}
    for name, (_, params, macs) in KINDS.items():
        assert (found[name]["params"], found[name]["macs"]) == (REST[0] + params, REST[1] + macs), name
    _, params, macs = KINDS[result.space.choices(result.genotype)["operation"]]
    assert (result.metrics["params"], result.metrics["macs"]) == (REST[0] + params, REST[1] + macs)


def test_the_proxies_of_size_count_the_same():
    space = one_operation()
    for name, (_, params, macs) in KINDS.items():
        network = space.network(space.genotype({"operation": name}))
        wanted = {"params": REST[0] + params, "macs": REST[1] + macs}
        assert surface.costs(network, (1, SIDE, SIDE)) == wanted, name


def nasbench201_by_hand(ops, *, width, cells, side, classes, channels):
    """The skeleton of Dong & Yang 2020, §2.1: parameters and multiply-accumulates of a whole network."""

    def conv(c_in, c_out, kernel, at):
        return kernel**2 * c_in * c_out + 2 * c_out, kernel**2 * c_in * c_out * at**2  # with its norm

    parts = [conv(channels, width, 3, side)]
    for stage in range(3):
        c, at = width * 2**stage, side // 2**stage
        if stage:
            half = c // 2
            parts += [conv(half, c, 3, at), conv(c, c, 3, at), (half * c, half * c * at**2)]
        kernels = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}
        parts += [conv(c, c, kernels[op], at) for op in ops if op in kernels] * cells
    last = 4 * width
    parts += [(2 * last, 0), (last * classes + classes, last * classes)]
    return {"params": sum(p for p, _ in parts), "macs": sum(m for _, m in parts)}


@pytest.mark.parametrize(("width", "cells"), [(16, 5), (4, 2)])
def test_networks_of_nasbench201_cost_what_the_paper_describes(width, cells):
    space = nas.load("nasbench201", width=width, cells=cells)
    for genotype in surface.genotypes(space, 3):
        wanted = nasbench201_by_hand(
            space.choices(genotype).values(), width=width, cells=cells, side=32, classes=10, channels=3
        )
        assert surface.costs(space.network(genotype), (3, 32, 32)) == wanted


def test_published_networks_have_their_published_parameters():
    """DARTS_V2 (Liu et al. 2019) at 36 channels and 20 cells: 3,349,342."""
    space = nas.load("darts", width=36, cells=20)
    network = space.network(space.notation.parse(surface.DARTS_V2), meta=True)
    assert surface.parameters(network) == 3_349_342
