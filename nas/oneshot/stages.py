"""Stages: a search in several parts, between which options drop out and the supernet may change its form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from nas.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """One part of a search.

    epochs: how long it is.
    keep: share of a decision's options that are in the race, rounded, at least one.
    parts: the channels of mixed operations are divided into so many parts, one of which is computed on.
    depth: the number of cells, as a multiple of the space's.
    skip_dropout: of identities, see `fading`.
    """

    epochs: int
    keep: float = 1.0
    parts: int = 1
    depth: float = 1.0
    skip_dropout: float = 0.0

    def options(self, count: int) -> int:
        """How many of `count` options are in the race."""
        return max(1, round(self.keep * count))


@dataclass(frozen=True)
class Staging(ABC):
    """Divides a search into stages.

    fresh: whether every stage starts with new weights, alphas and schedules, which then end with it.
    by: what decides which options drop out between two stages: the alphas, or Fisher information.
    """

    @property
    def fresh(self) -> bool:
        """Whether every stage starts anew."""
        return False

    @property
    def by(self) -> Literal["alphas", "fisher"]:
        """What decides which options drop out."""
        return "alphas"

    @abstractmethod
    def stages(self, epochs: int, options: int) -> list[Stage]:
        """The stages of a search of so many epochs over decisions with at most so many options."""


@dataclass(frozen=True)
class Whole(Staging):
    """One stage. parts: see `Stage`."""

    parts: int = 1

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise ConfigError(f"stages: parts is {self.parts}, but must be at least 1")

    def stages(self, epochs: int, options: int) -> list[Stage]:  # noqa: ARG002 - a staging's signature
        """The whole search."""
        return [Stage(epochs, parts=self.parts)]


@dataclass(frozen=True)
class Progressive(Staging):
    """Equally long stages with fewer options each.

    keep, parts, depth, skip_dropout: for each stage, see `Stage`; the last three may be left out.
    anew: see `Staging.fresh`. P-DARTS (Chen et al., ICCV 2019) starts its stages anew and deepens the
      network, DrNAS (Chen et al., ICLR 2021) goes on and computes on more channels.
    """

    keep: tuple[float, ...]
    parts: tuple[int, ...] = ()
    depth: tuple[float, ...] = ()
    skip_dropout: tuple[float, ...] = ()
    anew: bool = False

    def __post_init__(self) -> None:
        if not self.keep or any(b > a for a, b in pairwise(self.keep)) or not 0 < self.keep[-1] <= 1:
            raise ConfigError(f"stages: keep is {self.keep}, but must be shares in (0, 1] that do not grow")
        for name in ("parts", "depth", "skip_dropout"):
            if len(getattr(self, name)) not in (0, len(self.keep)):
                raise ConfigError(
                    f"stages: {name} is {getattr(self, name)}, but must have one entry for each of the "
                    f"{len(self.keep)} stages"
                )
        for name, wanted, holds in (
            ("parts", "at least 1", lambda entry: entry >= 1),
            ("depth", "finite and above 0", lambda entry: 0 < entry < math.inf),
            ("skip_dropout", "in [0, 1)", lambda entry: 0 <= entry < 1),
        ):
            if not all(map(holds, getattr(self, name))):
                raise ConfigError(f"stages: {name} is {getattr(self, name)}, but must be {wanted}")
        if not self.anew and any(share != 1 for share in self.depth):
            raise ConfigError("stages: the depth can change only where stages start anew; set anew")

    @property
    def fresh(self) -> bool:
        """As `anew`."""
        return self.anew

    def stages(self, epochs: int, options: int) -> list[Stage]:  # noqa: ARG002 - a staging's signature
        """As many stages as `keep` has entries; with fewer epochs than that, the first ones are left out."""
        count = min(len(self.keep), epochs)
        lengths = evenly(epochs, count)
        first = len(self.keep) - count

        def entry(values: Sequence[float], stage: int, default: float) -> float:
            return values[first + stage] if values else default

        return [
            Stage(
                length,
                keep=self.keep[first + i],
                parts=int(entry(self.parts, i, 1)),
                depth=entry(self.depth, i, 1.0),
                skip_dropout=entry(self.skip_dropout, i, 0.0),
            )
            for i, length in enumerate(lengths)
        ]


@dataclass(frozen=True)
class OneByOne(Staging):
    """Near the end of the search one option after the other drops out, until one is left.

    Several drop out together where there are more options than epochs.

    every: share of the search between two drops, at least one epoch; the last one is an epoch before the end.
    IS-DARTS (He et al., AAAI 2024): with 5 options and 30 epochs, after epochs 23, 25, 27 and 29. Deviation:
    in the DARTS space the code drops the worst operations of all edges into a node together.
    """

    every: float = 1 / 15

    def __post_init__(self) -> None:
        if not 0 <= self.every <= 1:
            raise ConfigError(f"stages: every is {self.every}, but must be a share in [0, 1]")

    @property
    def by(self) -> Literal["alphas", "fisher"]:
        """Fisher information."""
        return "fisher"

    def stages(self, epochs: int, options: int) -> list[Stage]:
        """One stage for each number of options."""
        drops = min(options, epochs) - 1
        if drops < 1:
            return [Stage(epochs)]
        gap = min(max(1, round(self.every * epochs)), (epochs - 1) // drops)
        lengths = [epochs - 1 - gap * (drops - 1), *[gap] * (drops - 1), 1]
        left = (options - round((options - 1) * i / drops) for i in range(drops + 1))
        return [Stage(length, keep=count / options) for length, count in zip(lengths, left, strict=True)]


def fading(at: int, rest: int, epochs: int) -> float:
    """What is left, in [0, 1], of the dropout of identities in epoch `at` of a stage, counted from 0.

    As in the code of P-DARTS: it falls linearly in the `rest` epochs in which the alphas do not move; then it
    begins anew and falls to 1/e in a fifth of the stage (there in 5 of 25 epochs).
    """
    return (epochs - 1 - at) / epochs if at < rest else math.exp(-5 * (at - rest) / epochs)


def evenly(total: int, count: int) -> list[int]:
    """`total` divided into `count` whole numbers that differ by at most 1."""
    ends = [0, *(round(total * (i + 1) / count) for i in range(count))]
    return [b - a for a, b in pairwise(ends)]


def ends(stages: Sequence[Stage]) -> list[int]:
    """The epoch, counted from the start of the search, after which each stage ends."""
    return list(accumulate(stage.epochs for stage in stages))
