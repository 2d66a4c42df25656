"""How good single architectures are on the shared weights of a supernet, of which nothing is changed.

Batch-norm statistics that all architectures share fit none of them (Guo et al., ECCV 2020, SPOS, §3.4), so
each architecture gets its own, from training images, before it is validated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.data.task import Split, Task
from nas.errors import ConfigError
from nas.oneshot.supernet import Supernet, preserving
from nas.seeding import torch_rng
from nas.training.evaluate import evaluate, reestimate
from nas.types import Genotype


@dataclass(frozen=True)
class Score:
    """Of one architecture: accuracy in [0, 1] and mean cross-entropy in nats."""

    accuracy: float
    loss: float


class _Path(nn.Module):
    """One architecture of a supernet as a network."""

    def __init__(self, supernet: Supernet, genotype: Genotype) -> None:
        super().__init__()
        self.supernet, self.genotype = supernet, genotype

    def forward(self, x: Tensor) -> Tensor:
        return self.supernet(x, self.genotype)  # type: ignore[no-any-return]


def score(
    supernet: Supernet,
    genotype: Genotype,
    task: Task,
    *,
    calibration: int = 1024,
    seed: int,
    images: int = 1024,
) -> Score:
    """How well one architecture does on the validation images by shared weights, batch-norm re-estimated.

    calibration: training images, drawn by `seed`, that the statistics are taken of in one batch.
    images: of the validation split that pass at the same time; halved where memory runs out.
    """
    if calibration < 2:
        raise ConfigError(f"calibration is {calibration}, but batch statistics need at least 2 images")
    path, train = _Path(supernet, genotype), task.train
    order = torch.randperm(len(train), generator=torch_rng(seed, "batchnorm", "order"))[:calibration]
    index = order.to(train.x.device)
    with preserving(supernet.network.buffers()):
        reestimate(path, task, Split(train.x[index], train.y[index]), batch=len(index))
        loss, accuracy = evaluate(path, task, task.val, batch=images)
    return Score(accuracy, loss)
