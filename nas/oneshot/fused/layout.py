"""Where the kernels keep the maps of a cell, and what they add up in which node.

All maps that are added up in nodes have one shape. What a branch brings into a node is a *contribution*.
Those of convolutions and pools are kept in slots, [slots, P, C] for a whole cell, as they are before their
batch-norm; those of identities are the states themselves. Maps between the stages of a family have slots
too, so that a launch writes them beside those of members that end there.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nas.oneshot.fused.families import Family
from nas.oneshot.fused.groups import Branch, Group
from nas.oneshot.fused.stages import Pool, Shape


@dataclass(frozen=True, eq=False)
class Sum:
    """What the kernels add up in one node.

    Its contributions are [start, stop) of all; those from `same` on are states, namely those of `sources`.
    edges: that bring any. among: [first, last) of all edges that lead into the node.
    """

    start: int
    same: int
    stop: int
    sources: tuple[int, ...]
    edges: tuple[int, ...]
    among: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Line:
    """Where a family is in a level.

    spans: [stages] its slots, counted from the first of the level; None where the maps of a stage are of
      another shape. rows: [stages] those of `Layout.rows`. most: [stages] edges that the members are on.
    kind, places: [steps][G] as in `nas.oneshot.fused.kernels.maps.Taps`.
    """

    family: Family
    spans: tuple[tuple[int, int] | None, ...]
    rows: tuple[int, ...]
    most: tuple[int, ...]
    kind: tuple[Tensor, ...]
    places: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Level:
    """What leaves one node by the kernels, or all inputs where the same leaves each.

    sources: the nodes. Then members of families, pools and identities are in turns those of each, so that
      number n of a kind reads the map of sources[n % maps].
    lines: of its families. pools, same: by what they are; pools of maxima come first. edges: that all these
      are on.
    line: the number of the first line among those of the cell; first: the first slot; lines have theirs one
      after the other, then every pool has one; slots: how many they are.
    ending: contributions of all members of families; pooled: the same of all pools, one after the other, of
      which each begins at its number in bounds [pools + 1]; branches: the same numbers pool by pool, for
      Python; passed: contributions of identities.
    sizes: numbers of each weight of the families, line by line and step by step.
    """

    sources: tuple[int, ...]
    lines: tuple[Line, ...]
    pools: tuple[Group, ...]
    same: tuple[Group, ...]
    edges: tuple[int, ...]
    line: int
    first: int
    slots: int
    ending: Tensor
    pooled: Tensor
    bounds: Tensor
    branches: tuple[tuple[int, ...], ...]
    passed: Tensor
    sizes: list[int]

    @property
    def maps(self) -> int:
        """How many it reads."""
        return len(self.sources)

    @property
    def maxima(self) -> int:
        """How many of the pools take the maximum."""
        return sum(isinstance(group.form, Pool) and group.form.largest for group in self.pools)

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """All of them, in the order of `sizes`."""
        return [conv for line in self.lines for conv in line.family.convolutions]

    @property
    def affine(self) -> list[tuple[nn.BatchNorm2d, ...]]:
        """Those of each stage whose batch-norms have weights and biases, line by line."""
        return [
            norms
            for line in self.lines
            for norms, affine in zip(line.family.norms, line.family.affine, strict=True)
            if affine
        ]


@dataclass(frozen=True, eq=False)
class Layout:
    """The whole cell.

    shape: of the maps. widest: channels of any map that is made, at most; inputs have the most pixels.
    slots, lines: how many there are in all levels. order: the branch of each contribution, node by node.
    targets: the computed node that each edge leads to.
    levels: [nodes], that of all inputs at the first. sums: [computed nodes].
    table: [contributions, 4] slot (0 for a state), number of the node and of the edge, whether it is
      normalised. ones: a weight for each contribution, where the mixture has none.
    owners, owned: a contribution, and a slot that is filled in for it.
    tickets: zeros, which programs count on how many of them are done, and set back; for one launch at a time.
    rows: [stages of all lines, members] the contributions of the members that have the stage, and then the
      number of all contributions; the first stages of all lines come first.
    """

    shape: Shape
    widest: int
    slots: int
    lines: int
    order: tuple[Branch, ...]
    targets: tuple[int, ...]
    levels: tuple[Level | None, ...]
    sums: tuple[Sum, ...]
    table: Tensor
    ones: Tensor
    owners: Tensor
    owned: Tensor
    rows: Tensor
    tickets: Tensor

    @property
    def affine(self) -> bool:
        """Whether any batch-norms have weights and biases."""
        return any(level is not None and level.affine for level in self.levels)
