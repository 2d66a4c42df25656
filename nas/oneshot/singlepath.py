"""Weight sharing without alphas: every step trains the paths of one or a few architectures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nas.data.task import Task
from nas.errors import ConfigError, unknown
from nas.oneshot.path_sampling import SAMPLINGS, Sampling, UniformSampling
from nas.oneshot.path_training import along_paths
from nas.oneshot.supernet import Supernet
from nas.seeding import rng
from nas.training.checkpoint import Checkpoints
from nas.training.ddp import ALONE, Team
from nas.training.history import Curve, EpochReport
from nas.training.recipe import Recipe
from nas.training.train import train
from nas.types import Genotype


@dataclass(frozen=True)
class Sharing:
    """How the weights of a supernet are trained and used.

    sampling: `uniform`, `fair` or `sandwich`, see `nas.oneshot.path_sampling`.
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
