"""Weight sharing without alphas: every step trains the path of one random architecture."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from nas.checkpoint import Checkpoints
from nas.oneshot.supernet import Supernet
from nas.recipe import Recipe
from nas.seeding import rng
from nas.task import Task
from nas.train import Curve, EpochReport, train


def train_shared(
    supernet: Supernet,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Curve:
    """Trains the shared weights of `supernet` in place by uniform sampling of single paths.

    Guo et al. 2020 (SPOS), §3.2: step s draws one architecture from the space, as (seed, s) says, and moves
    the weights on its path. Deviation: the architecture is drawn by the space, so that only valid ones are.
    """

    def one_path(_: nn.Module, x: Tensor, step: int) -> Tensor:
        out: Tensor = supernet(x, supernet.space.sample(rng(seed, "path", step)))
        return out

    return train(
        supernet.network,
        task,
        recipe,
        seed=seed,
        checkpoints=checkpoints,
        on_epoch=on_epoch,
        forward=one_path,
        stop=stop,
    )
