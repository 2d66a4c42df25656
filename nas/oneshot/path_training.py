"""Shared weights: a supernet trained along the paths of drawn architectures, and what these are worth on it.

`train_shared` trains the weights; `score` validates one architecture on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nas.data.task import Split, Task
from nas.errors import ConfigError, unknown
from nas.oneshot.expected_cost import option_costs
from nas.oneshot.supernet import Supernet, preserving
from nas.seeding import rng, torch_rng
from nas.space.space import Space
from nas.training.evaluate import Batch, evaluate, reestimate
from nas.training.loop import Loop, criterion
from nas.training.recipe import Recipe, precision
from nas.training.train import Control, Curve, train
from nas.types import Genotype

# -- which paths a step trains ----------------------------------------------------------------------------

Draw = Callable[[Space, np.random.Generator, Sequence[int]], list[Genotype]]
"""The architectures whose gradients are averaged in one step, equally many in each."""


def uniform(space: Space, rng: np.random.Generator, image_shape: Sequence[int]) -> list[Genotype]:  # noqa: ARG001
    """One architecture (Guo et al., ECCV 2020, SPOS, §3.2).

    Deviation: the architecture is drawn by the space, so that only valid ones are.
    """
    return [space.sample(rng)]


def strictly_fair(
    space: Space,
    rng: np.random.Generator,
    image_shape: Sequence[int],  # noqa: ARG001
) -> list[Genotype]:
    """As many architectures as a decision has options, each option in one (Chu et al., ICCV 2021, FairNAS).

    Deviations: the gradients of a step are averaged, where the paper adds them up, so that its learning rate
    is that many times ours, and one fits every sampling. Where decisions differ in size, one with fewer
    options than the largest has each of them equally often over the steps, drawn in blocks without repeats;
    the paper's all have as many.

    Raises:
        ConfigError: unless every combination of options is valid.
    """
    if not space.is_free:
        raise ConfigError(
            f"space {space.name!r}: strict fairness trains every option equally often, but this space "
            "forbids some combinations; use sampling uniform"
        )
    counts = [len(d.options) for d in space.decisions]
    most = max(counts)
    columns = [
        np.concatenate([rng.permutation(count) for _ in range(-(-most // count))])[:most] for count in counts
    ]
    return [tuple(int(column[i]) for column in columns) for i in range(most)]


def sandwich(
    space: Space, rng: np.random.Generator, image_shape: Sequence[int], *, random: int = 2
) -> list[Genotype]:
    """The largest architecture, the smallest, and some at random (Yu & Huang, ICCV 2019, §4.1), in turn.

    random: how many. The others learn from the largest one's predictions, not from labels (in-place
    distillation, §4.2). Size is multiply-accumulates; the extremes take the most and the fewest that each
    decision alone can make. Deviation: gradients are averaged, where the paper adds them up, so that one
    learning rate fits every sampling.
    """
    key = ("extremes", tuple(image_shape))
    if key not in space.memo:
        _, costs = option_costs(space, image_shape, "macs")
        rows = [np.array(row) for row in costs]
        space.memo[key] = [space.nearest(rows), space.nearest([-row for row in rows])]
    return [*space.memo[key], *(space.sample(rng) for _ in range(random))]


SAMPLINGS: Mapping[str, Draw] = {"uniform": uniform, "fair": strictly_fair, "sandwich": sandwich}
"""Every sampling by the name that a user types."""


@dataclass(frozen=True)
class Sharing:
    """How the weights of a supernet are trained and used.

    sampling: `uniform`, `fair` or `sandwich`.
    calibration: training images that batch-norm statistics are taken of for each architecture.
    """

    sampling: str = "uniform"
    calibration: int = 1024

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ConfigError(f"sharing: {unknown('sampling', self.sampling, SAMPLINGS)}")
        if self.calibration < 2:
            raise ConfigError(f"sharing: calibration is {self.calibration}, but must be at least 2 images")


# -- training ---------------------------------------------------------------------------------------------


def train_shared(
    supernet: Supernet,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    sampling: str = "uniform",
    control: Control = Control(),  # noqa: B008 - a frozen value
) -> Curve:
    """Trains the shared weights of `supernet` in place.

    Step s draws architectures as (seed, s) says, one after the other computes the gradients of their paths,
    and then moves the weights once by the mean. A path computes the chosen operations only; what is on no
    path has no gradient, and rests.

    sampling: one of `SAMPLINGS`. control: see `nas.training.train.train`; all ranks train the same paths.
    """

    def path_gradients(loop: Loop, batch: Batch) -> Tensor:
        paths = SAMPLINGS[sampling](supernet.space, rng(seed, "path", loop.step), task.image_shape)
        return _path_gradients(supernet, loop, batch, paths, distils=sampling == "sandwich")

    return train(supernet.network, task, recipe, seed=seed, gradients=path_gradients, control=control)


def _path_gradients(
    supernet: Supernet, loop: Loop, batch: Batch, paths: Sequence[Genotype], *, distils: bool
) -> Tensor:
    """Puts the mean gradient of the paths in place, one of which is in memory at a time; the mean loss.

    distils: whether the first architecture teaches the others.
    """
    x, targets = batch
    loop.team.agree(f"train, step {loop.step}", paths)
    loop.team.apart(loop.seed_of_step)
    losses: list[Tensor] = []
    teacher: Tensor | None = None
    for genotype in paths:
        with precision(loop.device, loop.recipe.precision):
            logits = supernet(x, genotype)
        if teacher is None:
            loss = criterion(logits, targets, loop.recipe, loop.task, network=supernet)
        else:
            loss = loop.task.problem.loss(logits.float(), teacher)
        (loss / len(paths)).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        if distils and teacher is None:
            teacher = loop.task.problem.soften(logits.detach().float())
    return sum(losses[1:], losses[0]) / len(paths)


# -- what an architecture is worth on them ----------------------------------------------------------------


def score(
    supernet: Supernet,
    genotype: Genotype,
    task: Task,
    *,
    calibration: int = 1024,
    seed: int,
    images: int = 1024,
) -> tuple[float, float]:
    """Mean loss and mean score of one architecture on the validation images, such as its accuracy.

    Batch-norm statistics that all architectures share fit none of them (Guo et al., ECCV 2020, SPOS, §3.4),
    so it gets its own before. Nothing of the supernet is changed.

    calibration: training images, drawn by `seed`, that the statistics are taken of in one batch.
    images: of the validation split that pass at the same time; halved where memory runs out.
    """
    path, train = _Path(supernet, genotype), task.train
    order = torch.randperm(len(train), generator=torch_rng(seed, "batchnorm", "order"))[:calibration]
    index = order.to(train.x.device)
    with preserving(supernet.network.buffers()):
        reestimate(path, task, Split(train.x[index], train.y[index]), batch=len(index))
        return evaluate(path, task, task.val, batch=images)


class _Path(nn.Module):
    """One architecture of a supernet as a network."""

    def __init__(self, supernet: Supernet, genotype: Genotype) -> None:
        super().__init__()
        self.supernet, self.genotype = supernet, genotype

    def forward(self, x: Tensor) -> Tensor:
        return self.supernet(x, self.genotype)  # type: ignore[no-any-return]
