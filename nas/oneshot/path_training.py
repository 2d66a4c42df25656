"""The gradients of the paths of drawn architectures on the weights of a supernet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from nas.data.task import Task
from nas.errors import ConfigError, unknown
from nas.oneshot.regularizers import option_costs
from nas.oneshot.supernet import Supernet
from nas.seeding import rng
from nas.space.space import Space
from nas.training.batches import Batch
from nas.training.checkpoint import Checkpoints
from nas.training.ddp import ALONE, Team
from nas.training.loop import Gradients, Loop
from nas.training.recipe import Recipe, precision
from nas.training.train import Curve, EpochReport, train
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


Draw = Callable[[int], list[Genotype]]
"""The architectures of a step, of which there are equally many in each."""


def along_paths(supernet: Supernet, draw: Draw, *, distils: bool) -> Gradients:
    """Steps that compute the gradients of one path after the other, of which one is in memory at a time.

    The weights move by their mean. A path computes the chosen operations only; what is on no path has no
    gradient, and rests.

    distils: whether the first architecture of a step teaches the others.
    """

    def gradients(loop: Loop, batch: Batch) -> Tensor:
        x, targets = batch
        paths = draw(loop.step)
        loop.team.note(paths)
        loop.team.apart(loop.seed_of_step)
        losses: list[Tensor] = []
        teacher: Tensor | None = None
        for genotype in paths:
            with precision(loop.device, loop.recipe.precision):
                logits = supernet(x, genotype)
            if teacher is None:
                loss = loop.criterion(logits, targets)
            else:
                loss = F.cross_entropy(logits.float(), teacher)
            (loss / len(paths)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            if distils and teacher is None:
                teacher = logits.detach().float().softmax(-1)
        return loop.combined(sum(losses[1:], losses[0]) / len(paths))

    return gradients


@dataclass(frozen=True)
class Sharing:
    """How the weights of a supernet are trained and used.

    sampling: `uniform`, `fair` or `sandwich`, see `nas.oneshot.path_training`.
    splits: decisions that the supernet is split by after half of the epochs; every option then has a supernet
      of its own (few-shot NAS, Zhao et al., ICML 2021), see `nas.oneshot.fewshot`.
    calibration: training images that batch-norm statistics are taken of for each architecture.
    """

    sampling: str = "uniform"
    splits: int = 0
    calibration: int = 1024

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ConfigError(f"sharing: {unknown('sampling', self.sampling, SAMPLINGS)}")
        if self.splits < 0 or self.calibration < 2:
            raise ConfigError(
                f"sharing: splits is {self.splits} and calibration {self.calibration}; wanted at least 0 and "
                "2"
            )

    @property
    def sampler(self) -> Sampling:
        """The sampling of that name."""
        return SAMPLINGS[self.sampling]()


def train_shared(
    supernet: Supernet,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    sampling: Sampling | None = None,
    within: Callable[[Genotype], Genotype] | None = None,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
    team: Team = ALONE,
) -> Curve:
    """Trains the shared weights of `supernet` in place.

    Step s draws architectures as (seed, s) says, one after the other computes the gradients of their paths,
    and then moves the weights once by the mean, see `nas.oneshot.path_training`.

    sampling: uniform unless given. within: turns a drawn architecture into one that may be trained.
    team: see `nas.training.train.train`; its ranks train the same paths.
    """
    sampling = sampling or UniformSampling()
    sampling.check(supernet.space)

    def draw(step: int) -> list[Genotype]:
        drawn = sampling.paths(supernet.space, rng(seed, "path", step), task.image_shape)
        return [within(genotype) for genotype in drawn] if within is not None else drawn

    return train(
        supernet.network,
        task,
        recipe,
        seed=seed,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
        gradients=along_paths(supernet, draw, distils=sampling.distils),
        reestimates=False,
        stop=stop,
        team=team,
    )
