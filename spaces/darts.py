"""The DARTS convolutional space (Liu et al., ICLR 2019): a normal and a reduction cell, two inputs per node.

One `build` gives the searched network (8 cells of 16 channels) and the one trained in the end (20 cells of 36
channels, auxiliary head, drop-path), as in the published code: stem of 3x width, 1x1 or factorised-reduce
preprocessing, the two reductions at one and two thirds of the depth, four nodes concatenated.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from nas.errors import SpaceError, unknown
from nas.space.cell import Cell
from nas.space.choosers import Candidates, Chooser, Primitive
from nas.space.ops import FactorizedReduce, MixtureNorm, candidates, relu_conv_bn, stem
from nas.space.space import Notation, Scores, Space
from nas.types import Decision, Genotype

OPTIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
DRNAS = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2), "
    "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2), ('dil_conv_5x5', 3)], "
    "reduce=[('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('dil_conv_5x5', 2), ('sep_conv_5x5', 1), "
    "('sep_conv_5x5', 1), ('dil_conv_5x5', 3), ('skip_connect', 4), ('sep_conv_5x5', 1)])"
)
"""The cells that DrNAS found (Chen et al. 2021, 2.46 % error on CIFAR-10), good in small networks, too.

In networks of three cells, of which two reduce, those of DARTS (second order), whose reduction cell only
pools, are worse than random ones.
"""
NODES = 4
KINDS = ("normal", "reduce")
EDGES = tuple((src, dst) for dst in range(2, 2 + NODES) for src in range(dst))
Pairs = Sequence[tuple[str, int]]
PAIR = r"\(\s*['\"](\w+)['\"]\s*,\s*([0-9]{1,3})\s*\)"


def darts(
    width: int = 16,
    cells: int = 8,
    *,
    classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    auxiliary: bool = False,
    stem_stride: int = 1,
) -> Space:
    """Images `[B, in_channels, H, W]` to `[B, classes]`.

    image_size: the shorter of H and W; only the auxiliary head depends on it.
    auxiliary: add a second classifier after the second reduction, used in training only.
    stem_stride: for large images.
    """
    reductions = {cells // 3, 2 * cells // 3}
    if cells < 3:
        raise SpaceError(f"darts: cells is {cells}, but must be at least 3 (two of them reduce)")

    def build(choose: Chooser) -> nn.Module:
        layers: list[Cell] = []
        c_prev2, c_prev, channels, shrunk = 3 * width, 3 * width, width, False
        for layer in range(cells):
            reduce = layer in reductions
            channels *= 2 if reduce else 1
            layers.append(_cell(choose, c_prev2, c_prev, channels, reduce=reduce, shrunk=shrunk))
            c_prev2, c_prev, shrunk = c_prev, NODES * channels, reduce
        first = stem(in_channels, 3 * width, stem_stride)
        head = AuxiliaryHead(NODES * 4 * width, classes, -(-image_size // stem_stride)) if auxiliary else None
        return Network(first, layers, nn.Linear(c_prev, classes), head, max(reductions))

    count = math.prod(math.comb(dst, 2) * (len(OPTIONS) - 1) ** 2 for dst in range(2, 2 + NODES))
    return Space(
        "darts",
        build,
        keep_two_inputs,
        count=count ** len(KINDS),
        full_size={"width": 36, "cells": 20, "auxiliary": True},
        notation=Notation(to_literal, from_literal),
        default=from_literal(DRNAS),
    )


def keep_two_inputs(decisions: Sequence[Decision], scores: Scores) -> Genotype:
    """Keeps, at every node, the two edges whose best operation scores highest; the rest become `none`.

    Liu et al. 2019, §2.4, with the strength of an edge taken as that of its best operation but `none`.
    """
    best = [1 + int(row[1:].argmax()) for row in scores]
    genotype = [0] * len(decisions)
    for start in range(0, len(decisions), len(EDGES)):
        for dst in range(2, 2 + NODES):
            edges = [start + i for i, (_, node) in enumerate(EDGES) if node == dst]
            for i in sorted(edges, key=lambda i: -scores[i][best[i]])[:2]:
                genotype[i] = best[i]
    return tuple(genotype)


def _cell(choose: Chooser, c_prev2: int, c_prev: int, channels: int, *, reduce: bool, shrunk: bool) -> Cell:
    kind = KINDS[reduce]
    first = FactorizedReduce(c_prev2, channels) if shrunk else relu_conv_bn(c_prev2, channels)
    return Cell(
        kind,
        2,
        NODES,
        lambda i, j: choose.op(f"{kind}/{i}->{j}", _options(channels, 2 if reduce and i < 2 else 1)),
        concat=True,
        preprocess=[first, relu_conv_bn(c_prev, channels)],
    )


def _options(channels: int, stride: int) -> Candidates:
    options = candidates(OPTIONS, channels, channels, stride)
    for pool in ("max_pool_3x3", "avg_pool_3x3"):
        options[pool] = replace(options[pool], make=partial(_normalised, options[pool].make))
    return options


def _normalised(pool: Primitive, c_in: int, c_out: int, stride: int) -> nn.Module:
    return nn.Sequential(pool(c_in, c_out, stride), MixtureNorm(c_out))


class AuxiliaryHead(nn.Module):
    """A small classifier on an intermediate map, for images of 8x8 after two reductions of 32x32.

    Other maps need not be square: what the longer side has too much is averaged before the classifier.
    """

    def __init__(self, c_in: int, classes: int, image_size: int) -> None:
        super().__init__()
        side = -(-image_size // 4)
        if side < 6:
            raise SpaceError(
                f"darts: auxiliary is on, but images of {image_size} are too small; "
                "wanted at least 21, or auxiliary=false"
            )
        pooled = (side - 5) // 3 + 1
        last = pooled - 1 if pooled > 1 else 1
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3, count_include_pad=False),
            nn.Conv2d(c_in, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, min(2, pooled), bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(last),
        )
        self.classifier = nn.Linear(768 * last**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, c_in, H, W]` to `[B, classes]`."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class Network(nn.Module):
    """A stack of cells in which each reads the outputs of the two before it."""

    def __init__(
        self,
        stem: nn.Module,
        cells: list[Cell],
        head: nn.Module,
        auxiliary: nn.Module | None,
        auxiliary_at: int,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.cells = nn.ModuleList(cells)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = head
        self.auxiliary, self.auxiliary_at = auxiliary, auxiliary_at

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """`[B, C, H, W]` to logits `[B, classes]`; with the auxiliary head in training, two of them."""
        before = last = self.stem(x)
        middle = last
        for i, cell in enumerate(self.cells):
            before, last = last, cell(before, last)
            if i == self.auxiliary_at:
                middle = last
        logits: Tensor = self.head(self.pool(last).flatten(1))
        if self.auxiliary is not None and self.training:
            return logits, self.auxiliary(middle)
        return logits


def to_literal(genotype: Genotype) -> str:
    """The classic literal, `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), ...)`."""
    parts = []
    for kind, start in zip(KINDS, range(0, len(genotype), len(EDGES)), strict=True):
        pairs = [
            (OPTIONS[option], src)
            for option, (src, _) in zip(genotype[start : start + len(EDGES)], EDGES, strict=True)
            if option
        ]
        parts.append(f"{kind}={pairs}, {kind}_concat=range(2, {2 + NODES})")
    return f"Genotype({', '.join(parts)})"


def from_literal(text: str) -> Genotype:
    """The genotype of a classic literal; concat fields, if given, must name all four nodes.

    Raises:
        SpaceError: when the text has another form, names another operation or the wrong number of inputs.
    """
    genotype: list[int] = []
    for kind in KINDS:
        match = re.search(rf"\b{kind}\s*=\s*\[\s*((?:{PAIR}[\s,]*)*)\]", text)
        if match is None:
            raise SpaceError(
                f"got {text!r}, wanted Genotype(normal=[('sep_conv_3x3', 0), ...], reduce=[...])"
            )
        genotype += _edges(kind, [(op, int(src)) for op, src in re.findall(PAIR, match[1])])
        concat = re.search(rf"\b{kind}_concat\s*=\s*(\[[^\]]*\]|range\([^)]*\))", text)
        nodes = set(re.findall(r"[0-9]+", concat.group(1))) if concat else set()
        if concat and nodes not in ({"2", f"{2 + NODES}"}, {f"{2 + i}" for i in range(NODES)}):
            raise SpaceError(
                f"{kind}_concat is {concat.group(1)}, but cells here concatenate nodes 2 to {1 + NODES}"
            )
    return tuple(genotype)


def _edges(kind: str, pairs: Pairs) -> list[int]:
    if len(pairs) != 2 * NODES:
        raise SpaceError(f"{kind} has {len(pairs)} edges, wanted two for each of {NODES} nodes")
    chosen: dict[tuple[int, int], int] = {}
    for i, (op, src) in enumerate(pairs):
        dst = 2 + i // 2
        if op not in OPTIONS[1:]:
            raise SpaceError(unknown("DARTS operation", str(op), OPTIONS[1:]))
        if (src, dst) not in EDGES or (src, dst) in chosen:
            raise SpaceError(f"{kind}: node {dst} takes input {src}, wanted two different ones below {dst}")
        chosen[src, dst] = OPTIONS.index(op)
    return [chosen.get(edge, 0) for edge in EDGES]
