"""Which paths of a supernet one step trains: one at random, every option equally often, or the extremes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from nas.errors import ConfigError
from nas.oneshot.expected_cost import option_costs
from nas.space.space import Space
from nas.types import Genotype


@dataclass(frozen=True)
class Sampling(ABC):
    """Draws the architectures whose gradients are averaged in one step."""

    distils: bool = field(default=False, init=False)
    """Whether the first architecture of a step teaches the others."""

    def check(self, space: Space) -> None:  # noqa: B027 - most can sample any space
        """Raises ConfigError when the space cannot be sampled so."""

    @abstractmethod
    def paths(self, space: Space, rng: np.random.Generator, image_shape: Sequence[int]) -> list[Genotype]:
        """One or several architectures, as many in every step."""


@dataclass(frozen=True)
class UniformSampling(Sampling):
    """One architecture (Guo et al., ECCV 2020, SPOS, §3.2).

    Deviation: the architecture is drawn by the space, so that only valid ones are.
    """

    def paths(
        self,
        space: Space,
        rng: np.random.Generator,
        image_shape: Sequence[int],  # noqa: ARG002 - a sampling's signature
    ) -> list[Genotype]:
        """A draw of the space."""
        return [space.sample(rng)]


@dataclass(frozen=True)
class StrictlyFair(Sampling):
    """As many architectures as a decision has options, each option in one (Chu et al., ICCV 2021, FairNAS).

    Deviations: the gradients of a step are averaged, where the paper adds them up, so that its learning rate
    is that many times ours, and one fits every sampling. Where decisions differ in size, one with fewer
    options than the largest has each of them equally often over the steps, drawn in blocks without repeats;
    the paper's all have as many.
    """

    def check(self, space: Space) -> None:
        """Raises ConfigError unless every combination of options is valid."""
        if not space.is_free:
            raise ConfigError(
                f"space {space.name!r}: strict fairness trains every option equally often, but this space "
                "forbids some combinations; use sampling uniform"
            )

    def paths(
        self,
        space: Space,
        rng: np.random.Generator,
        image_shape: Sequence[int],  # noqa: ARG002 - a sampling's signature
    ) -> list[Genotype]:
        """`max O` architectures made of permutations."""
        counts = [len(d.options) for d in space.decisions]
        most = max(counts)
        columns = [
            np.concatenate([rng.permutation(count) for _ in range(-(-most // count))])[:most]
            for count in counts
        ]
        return [tuple(int(column[i]) for column in columns) for i in range(most)]


@dataclass(frozen=True)
class Sandwich(Sampling):
    """The largest architecture, the smallest, and some at random (Yu & Huang, ICCV 2019, §4.1).

    random: how many. The others learn from the largest one's predictions, not from labels (in-place
    distillation, §4.2). Size is multiply-accumulates; the extremes take the most and the fewest that each
    decision alone can make. Deviation: gradients are averaged, where the paper adds them up, so that one
    learning rate fits every sampling.
    """

    random: int = 2
    distils: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.random < 0:
            raise ConfigError(f"sandwich: random is {self.random}, but must be at least 0")

    def paths(self, space: Space, rng: np.random.Generator, image_shape: Sequence[int]) -> list[Genotype]:
        """Largest first, then smallest, then random ones."""
        return [*extremes(space, image_shape), *(space.sample(rng) for _ in range(self.random))]


SAMPLINGS: Mapping[str, Callable[[], Sampling]] = {
    "uniform": UniformSampling,
    "fair": StrictlyFair,
    "sandwich": Sandwich,
}
"""Every sampling by the name that a user types."""


def extremes(space: Space, image_shape: Sequence[int]) -> tuple[Genotype, Genotype]:
    """The largest and the smallest architecture by multiply-accumulates, decision by decision."""
    key = ("extremes", tuple(image_shape))
    if key not in space.memo:
        space.memo[key] = _extremes(space, image_shape)
    return cast(tuple[Genotype, Genotype], space.memo[key])


def _extremes(space: Space, image_shape: Sequence[int]) -> tuple[Genotype, Genotype]:
    _, costs = option_costs(space, image_shape, "macs")
    rows = [np.array(row) for row in costs]
    return space.nearest(rows), space.nearest([-row for row in rows])
