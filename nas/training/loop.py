"""The steps of one training; what is random about step s follows from (seed, s) alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.task import Split, Task
from nas.errors import ConfigError
from nas.seeding import derive, reseed
from nas.space.cell import Cell
from nas.training.batched.cells import execute_cells
from nas.training.batches import Batch, Batches, images_of, mixed, policy_of
from nas.training.checks import CHECK_STEPS, check_depends, check_finite, described, shared_device
from nas.training.ddp import ALONE, Team
from nas.training.evaluate import SHORT, Output, Targets, criterion, reestimate
from nas.training.optimizer import Average, Descent, Resting
from nas.training.recipe import Precision, Recipe, learning_rate, precision


class DropPath:
    """That of a training: none in the first epoch, the recipe's after the last.

    probability: the present one; that of the recipe until `follow` is asked. On CUDA the cells read a scalar
      on the device: in a CUDA graph a number would stay what it was.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self._network, self._recipe = network, recipe
        self._scalar = torch.zeros((), device=device)
        self.probability = recipe.drop_path
        set_drop_path(network, self.probability)

    def follow(self, epoch: int) -> None:
        """Sets what an epoch, counted from 0, wants."""
        probability = self._recipe.drop_path * epoch / self._recipe.epochs
        if probability == self.probability:
            return
        self.probability = probability
        if self._scalar.device.type != "cuda" or not probability:
            set_drop_path(self._network, probability)
            return
        self._scalar.fill_(probability)
        set_drop_path(self._network, self._scalar)


def set_drop_path(network: nn.Module, probability: float | Tensor) -> None:
    """Sets the drop-path probability, in [0, 1), of every `Cell` of `network`."""
    cells = [module for module in network.modules() if isinstance(module, Cell)]
    if not cells and (isinstance(probability, Tensor) or probability):
        raise ConfigError(
            f"drop_path is {probability}, but {type(network).__name__} has no Cell to drop paths in; "
            "set it to 0"
        )
    for cell in cells:
        cell.drop_path = probability


Gradients = Callable[["Loop", Batch], Tensor]
"""Puts the gradients of the coming step in place, on its batch, and returns the loss, a scalar."""


class Loop:
    """A training that can be advanced one step at a time, and saved and restored between any two steps.

    step: steps done, of `steps` in all; `steps_per_epoch` leaves out a last partial batch.
    lr: the learning rate of the last step, or the one under way; before the first, that of the first.
    seconds: time spent on the current epoch so far.
    weight_decay: the recipe's, unless it was changed on the way.
    batch: images of a step; images: how many of them this process holds, fewer in a team.
    descent: moves the weights; its `rate` is `lr`, on CUDA as a scalar on the device.
    resting: which parameters stay as they are where their gradient is zeros; none unless set.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        recipe: Recipe,
        *,
        seed: int,
        split: Split,
        elapsed: Callable[[], float] | None = None,
        team: Team = ALONE,
    ) -> None:
        """As described.

        elapsed: share in [0, 1] of the training's time that is over, where that is what its schedule follows;
          else it follows the steps.
        team: the processes that divide every batch among them and then move alike, see `nas.training.ddp`.
        """
        self.network, self.task, self.recipe, self.seed, self.split = network, task, recipe, seed, split
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.device = shared_device(self.parameters, split)
        self.batches = Batches(split, task, policy_of(recipe, task), size=recipe.batch, seed=seed)
        self.batch, self.steps_per_epoch = self.batches.size, self.batches.per_epoch
        self.team, self.images = team, images_of(team, self.batch)
        self.steps = recipe.epochs * self.steps_per_epoch
        self.step = 0
        self.seconds = 0.0
        self.weight_decay = recipe.weight_decay
        self.resting = Resting(())
        execute_cells(network, recipe.execution, self.device)
        if self.device.type == "cuda":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._elapsed = elapsed
        self._drop_path = DropPath(network, recipe, self.device)
        self._average = Average(network, recipe.ema, self.device) if recipe.ema else None
        self.descent = Descent(self.parameters, recipe, self.device)
        self.lr = learning_rate(recipe, 0, steps_per_epoch=self.steps_per_epoch)
        self._loss_sum = torch.zeros((), device=self.device)

    # -- a step ----------------------------------------------------------------------------------------

    def advance(self, learn: Callable[[Batch], None] | None = None) -> None:
        """Does one step. learn: what it does with its batch; `Loop.learn` unless given."""
        started = time.perf_counter()
        batch = self.begin()
        (learn or self.learn)(batch)
        self.step += 1
        if self.step % CHECK_STEPS == 0:
            self._check_finite()
        self.seconds += time.perf_counter() - started

    def begin(self) -> Batch:
        """Sets the rates of the coming step, draws its batch, and sets torch's stream to where it begins."""
        at = self.step
        if self._elapsed is not None:
            at = min(self.steps - 1, int(self._elapsed() * self.steps))
        self._drop_path.follow(at // self.steps_per_epoch)
        self.lr = learning_rate(self.recipe, at, steps_per_epoch=self.steps_per_epoch)
        self.descent.set(self.lr, self.weight_decay)
        if self._average is not None:
            self._average.follow(self.step)
        batch = mixed(self.batches, self.step, self.recipe.mixup, self.team)
        reseed(self.seed_of_step)
        return batch

    def learn(self, batch: Batch, gradients: Gradients | None = None) -> None:
        """Moves the weights along the gradients of a batch; those of one pass unless given."""
        self.descent.clear()
        self.descend((gradients or one_pass)(self, batch))

    def loss(
        self, batch: Batch, forward: Callable[[Tensor], Output] | None = None, wanted: Precision | None = None
    ) -> Tensor:
        """The recipe's loss of a batch, a scalar.

        forward: how the network is run on images; it is called unless given. wanted: arithmetic, the
        recipe's unless given.
        """
        x, targets = batch
        with precision(self.device, wanted or self.recipe.precision):
            output: Output = (forward or self.network)(x)
        return self.criterion(output, targets)

    def descend(self, loss: Tensor) -> None:
        """Moves the weights along the gradients that are in place. loss: that they are of."""
        self.descent.step(self.resting)
        if self._average is not None:
            self._average.update(self.network)
        self._loss_sum += loss.detach()

    def combined(self, loss: Tensor) -> Tensor:
        """Puts the mean gradient of all ranks in place of this one's; gives the mean loss."""
        if self.team.size == 1:
            return loss.detach()
        found = [p.grad for p in self.parameters.values() if p.grad is not None]
        trained = tuple(i for i, p in enumerate(self.parameters.values()) if p.grad is not None)
        self.team.agree(f"train, step {self.step}", hash(trained))
        *means, mean = self.team.average([*found, loss], self.batch)
        torch._foreach_copy_(found, means)
        return mean

    @property
    def seed_of_step(self) -> int:
        """Of what the network draws in the coming step."""
        return derive(self.seed, "step", self.step)

    def criterion(self, output: Output, targets: Targets) -> Tensor:
        """The recipe's loss of what the network gave."""
        name = type(self.network).__name__
        return criterion(output, targets, self.recipe, classes=self.task.num_classes, network=name)

    @property
    def read_by_steps(self) -> Hashable:
        """What a step reads of Python and may change from one step to the next."""
        return self._drop_path.probability > 0, self.weight_decay

    # -- epochs ----------------------------------------------------------------------------------------

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step done was the last of its epoch."""
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    def end_epoch(self) -> tuple[float, float]:
        """The epoch's mean loss and its seconds; the next epoch counts from zero again."""
        started = time.perf_counter()
        self._check_finite()
        mean = self._loss_sum.item() / (self.step % self.steps_per_epoch or self.steps_per_epoch)
        seconds = self.seconds + time.perf_counter() - started
        self._loss_sum.zero_()
        self.seconds = 0.0
        return mean, seconds

    def finish(self) -> None:
        """Leaves the network as the recipe wants it used: averaged weights, no drop-path, run plainly."""
        set_drop_path(self.network, 0.0)
        execute_cells(self.network, "plain", self.device)
        if self._average is not None:
            self.network.load_state_dict(self._average.state)

    def settle(self) -> None:
        """Takes the batch-norm statistics anew, where the training is too short for moving averages."""
        if self.step < SHORT:
            reestimate(self.network, self.task, self.split, batch=self.images)

    def averaged(self) -> AbstractContextManager[None]:
        """Runs a block on the averaged weights, where the recipe keeps any."""
        return nullcontext() if self._average is None else self._average.during(self.network)

    # -- saving ----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the settings and `step`."""
        return {
            "network": self.network.state_dict(),
            "average": self._average.state if self._average is not None else {},
            "momentum": self.descent.momentum,
            "loss_sum": self._loss_sum,
            "seconds": self.seconds,
            "weight_decay": self.weight_decay,
        }

    def settings(self) -> dict[str, Any]:
        """What must be the same for a saved state to be taken up again."""
        return described(self.network, self.task, self.split, self.recipe, seed=self.seed)

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was taken, after `step` steps."""
        self.step = step
        self.seconds = state["seconds"]
        self.weight_decay = state["weight_decay"]
        self._loss_sum.copy_(state["loss_sum"])
        self.network.load_state_dict(state["network"])
        if self._average is not None:
            self._average.restore(state["average"])
        self.descent.restore(state["momentum"])

    def moved(self) -> Iterator[Tensor]:
        """All tensors that a step changes."""
        yield from (*self.network.parameters(), *self.network.buffers(), self._loss_sum)
        yield from self.descent.momentum.values()
        if self._average is not None:
            yield from self._average.state.values()

    def _check_finite(self) -> None:
        epoch = (self.step - 1) // self.steps_per_epoch + 1
        check_finite(self._loss_sum, self.parameters, step=self.step, epoch=epoch, lr=self.lr)


def one_pass(loop: Loop, batch: Batch) -> Tensor:
    """The gradients of one pass forward and backward."""
    loop.team.apart(loop.seed_of_step)
    loss = loop.loss(batch)
    check_depends(loss, loop.step)
    loss.backward()  # type: ignore[no-untyped-call]
    return loop.combined(loss)
