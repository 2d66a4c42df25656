"""The batches of a training: which images a step sees, how they are changed, and how a team divides them."""

from __future__ import annotations

import torch
from torch import Tensor

from nas.data.augment import Policy, augment, mixup
from nas.data.task import Split, Task
from nas.errors import ConfigError
from nas.seeding import derive, torch_rng
from nas.training.ddp import Team
from nas.training.evaluate import Targets
from nas.training.recipe import Recipe, to_layout

Batch = tuple[Tensor, Targets]
"""Images `[B, C, H, W]` and their targets."""


class Batches:
    """The augmented batches of one split, without end; batch s is a pure function of (seed, s).

    size: images per batch, at most the whole split; a last partial batch of an epoch is left out.
    """

    def __init__(self, split: Split, task: Task, policy: Policy, *, size: int, seed: int) -> None:
        self.split, self.task, self.policy, self.seed = split, task, policy, seed
        self.size = min(size, len(split))
        self.per_epoch = len(split) // self.size
        self._generator = torch.Generator(split.x.device)
        self._epoch, self._order = -1, torch.empty(0)

    def at(self, step: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Images `[B, C, H, W]`, labels `[B]`, and the stream for whatever else the step draws."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.split), generator=torch_rng(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.split.x.device)
        index = self._order[position * self.size : (position + 1) * self.size]
        self._generator.manual_seed(derive(self.seed, "augment", step))
        x, y = (tensor.index_select(0, index) for tensor in (self.split.x, self.split.y))
        return augment(x, self.task, self.policy, self._generator), y, self._generator


def mixed(batches: Batches, step: int, alpha: float, team: Team) -> Batch:
    """What step `step` of one rank learns from: its part of the batch, mixed up.

    alpha: of the mixing weight, Beta(alpha, alpha); 0 mixes nothing.
    """
    x, y, generator = batches.at(step)
    if not alpha:
        return to_layout(team.part(x)), (team.part(y), None)
    x, partners, share = mixup(x, y, alpha, generator)
    return to_layout(team.part(x)), (team.part(y), (team.part(partners), share))


def policy_of(recipe: Recipe, task: Task) -> Policy:
    """The augmentation that a recipe asks for and the task's images allow."""
    return Policy(pad=task.pad if recipe.crop else 0, flip=recipe.flip and task.flip, cutout=recipe.cutout)


def images_of(team: Team, batch: int) -> int:
    """How many images of a batch one process holds.

    Raises:
        ConfigError: when a rank would hold a single image, of which batch-norm can take no statistics.
    """
    if team.size > 1 and batch < 2 * team.size:
        raise ConfigError(
            f"train: a batch of {batch} leaves {team.size} ranks fewer than 2 images each; use a batch of at "
            f"least {2 * team.size}, or fewer ranks"
        )
    return team.images(batch)
