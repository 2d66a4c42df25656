"""The steps of one training: batches, learning rates, gradients, weights; one page is `Loop.advance`.

What is random about step s follows from (seed, s) alone, so that a training that goes on from a saved state
is the uninterrupted one, bit for bit on the CPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.augment import Policy, augment, mixup
from nas.data.task import Split, Task
from nas.errors import ConfigError, DataError, TrialError
from nas.seeding import derive, reseed, torch_rng
from nas.space.cell import Cell
from nas.training.batched import execute_cells
from nas.training.ddp import ALONE, Team
from nas.training.evaluate import SHORT, Batch, Output, Targets, reestimate
from nas.training.optimizer import Descent, Ema, check_depends
from nas.training.recipe import Precision, Recipe, learning_rate, precision, to_layout

CHECK_STEPS = 50
"""Steps from one look for divergence to the next: reading a number back from the device waits for it."""
Gradients = Callable[["Loop", Batch], Tensor]
"""Puts the gradients of the coming step in place, on its batch, and returns the loss, a scalar."""


class Batches:
    """The batches of one split, augmented and without end; batch s is a pure function of (seed, s).

    size: images per batch, at most the whole split; a last partial batch of an epoch is left out.
    per_epoch: batches of an epoch. images: how many of a batch the largest part of a team's rank has.
    """

    def __init__(self, split: Split, task: Task, recipe: Recipe, *, seed: int, team: Team = ALONE) -> None:
        """As described.

        recipe: its `batch`, its augmentation as far as the task's images allow that, and its mixup.
        team: of whose batches this process takes its part.
        """
        self.split, self.task, self.seed, self.team, self.mixup = split, task, seed, team, recipe.mixup
        self.policy = Policy(
            pad=task.pad if recipe.crop else 0, flip=recipe.flip and task.flip, cutout=recipe.cutout
        )
        self.size = min(recipe.batch, len(split))
        self.per_epoch = len(split) // self.size
        self.images, self._part = team.images(self.size), team.part(self.size)
        self._generator = torch.Generator(split.x.device)
        self._epoch, self._order = -1, torch.empty(0)

    def at(self, step: int) -> Batch:
        """What a step, counted from 0, learns from: this rank's part of the batch."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.split), generator=torch_rng(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.split.x.device)
        index = self._order[position * self.size : (position + 1) * self.size]
        self._generator.manual_seed(derive(self.seed, "augment", step))
        x, y = (tensor.index_select(0, index) for tensor in (self.split.x, self.split.y))
        x, mixed = augment(x, self.task, self.policy, self._generator), None
        if self.mixup:
            x, partners, share = mixup(x, y, self.mixup, self._generator)
            mixed = partners[self._part], share
        return to_layout(x[self._part]), (y[self._part], mixed)


class Loop:
    """A training that can be advanced one step at a time, and saved and restored between any two steps.

    step: steps done, of `steps` in all; `steps_per_epoch` leaves out a last partial batch.
    lr: the learning rate of the last step, or the one under way; before the first, that of the first.
    seconds: time spent on the current epoch so far. step_s: what a step took of late, in seconds; 0 while
      that is not known. On CUDA it is known when the device has been waited for.
    weight_decay: the recipe's, unless it was changed on the way.
    batch: images of a step; images: how many of them this process holds, fewer in a team.
    descent: moves the weights; its `rate` is `lr`, on CUDA as a scalar on the device.
    ema: the averaged weights, where the recipe keeps any.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        recipe: Recipe,
        *,
        seed: int,
        split: Split,
        passes: int = 1,
        elapsed: Callable[[], float] | None = None,
        team: Team = ALONE,
    ) -> None:
        """As described.

        passes: parts that each batch is divided into to save memory, see `accumulate`.
        elapsed: share in [0, 1] of the training's time that is over, where that is what its schedule follows;
          else it follows the steps.
        team: the processes that divide every batch among them and then move alike, see `nas.training.ddp`.
        """
        self.network, self.task, self.recipe, self.seed, self.split = network, task, recipe, seed, split
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise TrialError("no-grad", "train: the network has no trainable parameter")
        if len(split) < 2:
            raise DataError(f"train: the split has {len(split)} images, but batch statistics need at least 2")
        self.device = split.x.device
        self.batches = Batches(split, task, recipe, seed=seed, team=team)
        self.batch, self.images = self.batches.size, self.batches.images
        self.steps_per_epoch = self.batches.per_epoch
        self.steps = recipe.epochs * self.steps_per_epoch
        self.step, self.seconds, self.step_s = 0, 0.0, 0.0
        self.weight_decay = recipe.weight_decay
        self.team, self.passes, self._elapsed = team, passes, elapsed
        execute_cells(network, recipe.execution, self.device)
        if self.device.type == "cuda":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # On the device, as the learning rate is: in a CUDA graph a number would stay what it was.
        self._drop_path = torch.zeros((), device=self.device)
        set_drop_path(network, self._drop_path if recipe.drop_path else 0.0)
        self.ema = Ema(network, recipe.ema, self.device) if recipe.ema else None
        self.descent = Descent(self.parameters, recipe, self.device)
        self.lr = learning_rate(recipe, 0, steps_per_epoch=self.steps_per_epoch)
        self.loss_sum = torch.zeros((), device=self.device)

    # -- a step ----------------------------------------------------------------------------------------

    def advance(self, learn: Callable[[Batch], None] | None = None) -> None:
        """Does one step. learn: what it does with its batch; `Loop.learn` unless given."""
        started, batch = time.perf_counter(), self.begin()
        (learn or self.learn)(batch)
        self.end_step(started)

    def end_step(self, started: float) -> None:
        """Counts the step that began at `started` by `time.perf_counter`; checks its outcome now and then."""
        self.step += 1
        if looks := self.step % CHECK_STEPS == 0:
            _check_finite(self)
        took_s = time.perf_counter() - started
        self.seconds += took_s
        if self.device.type != "cuda":
            self.step_s = took_s
        elif looks:
            self.step_s = self.seconds / (self.step % self.steps_per_epoch or self.steps_per_epoch)

    def begin(self) -> Batch:
        """Sets the rates of the coming step, draws its batch, and sets torch's stream to where it begins."""
        at = self.step if self._elapsed is None else min(self.steps - 1, int(self._elapsed() * self.steps))
        self._drop_path.fill_(self.recipe.drop_path * (at // self.steps_per_epoch) / self.recipe.epochs)
        self.lr = learning_rate(self.recipe, at, steps_per_epoch=self.steps_per_epoch)
        self.descent.set(self.lr, self.weight_decay)
        if self.ema is not None:
            self.ema.follow(self.step)
        batch = self.batches.at(self.step)
        reseed(self.seed_of_step)
        return batch

    def learn(self, batch: Batch, gradients: Gradients | None = None) -> None:
        """Moves the weights along the gradients of a batch; those of its loss unless given."""
        self.descent.clear()
        self.descend(self.combined((gradients or accumulate)(self, batch)))

    def descend(self, loss: Tensor) -> None:
        """Moves the weights along the gradients in place, those of `loss`."""
        self.descent.step()
        if self.ema is not None:
            self.ema.update(self.network)
        self.loss_sum += loss.detach()

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
        return criterion(output, targets, self.recipe, self.task, network=self.network)

    def combined(self, loss: Tensor) -> Tensor:
        """Puts the mean gradient of all ranks in place of this one's; gives the mean loss."""
        if self.team.size == 1:
            return loss
        found = [p.grad for p in self.parameters.values() if p.grad is not None]
        trained = [name for name, p in self.parameters.items() if p.grad is not None]
        self.team.agree(f"train, step {self.step}", trained)
        *means, mean = self.average([*found, loss], self.batch)
        torch._foreach_copy_(found, means)
        return mean

    def average(self, tensors: list[Tensor], batch: int) -> list[Tensor]:
        """The means of all ranks, each of its part of a batch of so many images."""
        return tensors if self.team.size == 1 else self.team.average(tensors, batch)

    @property
    def seed_of_step(self) -> int:
        """Of what the network draws in the coming step."""
        return derive(self.seed, "step", self.step)

    def moved(self) -> Iterator[Tensor]:
        """All tensors that a step changes."""
        yield from (*self.network.parameters(), *self.network.buffers(), self.loss_sum)
        yield from self.descent.momentum.values()
        if self.ema is not None:
            yield from self.ema.state.values()

    # -- epochs ----------------------------------------------------------------------------------------

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step done was the last of its epoch."""
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    def end_epoch(self) -> tuple[float, float]:
        """The epoch's mean loss and its seconds; the next epoch counts from zero again."""
        started = time.perf_counter()
        _check_finite(self)
        steps = self.step % self.steps_per_epoch or self.steps_per_epoch
        mean = self.loss_sum.item() / steps
        seconds = self.seconds + time.perf_counter() - started
        if self.device.type == "cuda":
            self.step_s = seconds / steps
        self.loss_sum.zero_()
        self.seconds = 0.0
        return mean, seconds

    def settle(self) -> None:
        """Takes the batch-norm statistics anew, where the training is too short for moving averages."""
        if self.step < SHORT:
            reestimate(self.network, self.task, self.split, batch=self.images)

    def finish(self) -> None:
        """Leaves the network as the recipe wants it used: averaged weights, no drop-path, run plainly."""
        set_drop_path(self.network, 0.0)
        execute_cells(self.network, "plain", self.device)
        if self.ema is not None:
            self.network.load_state_dict(self.ema.state)

    # -- saving ----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the settings and `step`."""
        return {
            "network": self.network.state_dict(),
            "average": self.ema.state if self.ema is not None else {},
            "momentum": self.descent.momentum,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "weight_decay": self.weight_decay,
        }

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was taken, after `step` steps."""
        self.step = step
        self.seconds = state["seconds"]
        self.weight_decay = state["weight_decay"]
        self.loss_sum.copy_(state["loss_sum"])
        self.network.load_state_dict(state["network"])
        if self.ema is not None:
            self.ema.restore(state["average"])
        self.descent.restore(state["momentum"])

    def settings(self) -> dict[str, Any]:
        """What must be the same for a saved state to be taken up again, as plain values."""
        layout = [(n, tuple(t.shape), str(t.dtype)) for n, t in self.network.state_dict().items()]
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "seed": self.seed,
            "network": hashlib.sha256(repr(layout).encode()).hexdigest(),
            "data": self.task.fingerprint,
            "split": len(self.split),
        }


def accumulate(loop: Loop, batch: Batch) -> Tensor:
    """Puts the gradients of the recipe's loss of a batch in place, by the loop's passes; returns the loss.

    Several are not the same as one: batch-norm normalises each part by its own statistics, and its running
    ones move once for each part; what a network draws at random (paths, dropout) comes in another order.
    """
    loop.team.apart(loop.seed_of_step)
    total = torch.zeros((), device=loop.device)
    for share, part in _divided(batch, loop.passes):
        loss = share * loop.loss(part)
        check_depends(loss, loop.step)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _check_finite(loop: Loop) -> None:
    """Raises TrialError when a loss or a weight is infinite or no number; waits for the device."""
    weights = nn.utils.get_total_norm(loop.parameters.values())
    if not (loop.loss_sum + weights).isfinite():
        epoch = (loop.step - 1) // loop.steps_per_epoch + 1
        raise TrialError(
            "nan",
            f"train: loss or weights are not finite at step {loop.step}, epoch {epoch}, lr {loop.lr:.3g}"
            "; lower the learning rate",
        )


def set_drop_path(network: nn.Module, probability: float | Tensor) -> None:
    """Sets the drop-path probability, in [0, 1), of every `Cell` of `network`."""
    cells = [module for module in network.modules() if isinstance(module, Cell)]
    if not cells and isinstance(probability, Tensor):
        raise ConfigError(f"drop_path: {type(network).__name__} has no Cell to drop paths in; set it to 0")
    for cell in cells:
        cell.drop_path = probability


def _divided(batch: Batch, passes: int) -> Iterator[tuple[float, Batch]]:
    """A batch in so many parts, at most one for each image, each with its share."""
    x, (y, mixed) = batch
    for rows in torch.arange(len(x)).tensor_split(passes):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        partners = None if mixed is None else (mixed[0][part], mixed[1])
        yield len(rows) / len(x), (x[part], (y[part], partners))


def criterion(output: Output, targets: Targets, recipe: Recipe, task: Task, *, network: nn.Module) -> Tensor:
    """The recipe's loss of what a network gave.

    Raises:
        ConfigError: when the recipe weighs the loss of an auxiliary head that the network lacks.
        TrialError: when the outputs have another shape than `[B, outputs]`.
    """
    main, auxiliary = output if isinstance(output, tuple) else (output, None)
    loss = _loss(main, targets, recipe, task)
    if not recipe.auxiliary:
        return loss
    if auxiliary is None:
        raise ConfigError(
            f"recipe: auxiliary is {recipe.auxiliary}, but {type(network).__name__} has no auxiliary head; "
            "set it to 0 or return (logits, auxiliary logits) in training mode"
        )
    return loss + recipe.auxiliary * _loss(auxiliary, targets, recipe, task)


def _loss(outputs: Tensor, targets: Targets, recipe: Recipe, task: Task) -> Tensor:
    (y, mixed), loss = targets, task.problem.loss
    if tuple(outputs.shape) != (wanted := (len(y), task.outputs)):
        raise TrialError("build", f"train: the network gave outputs {tuple(outputs.shape)}, wanted {wanted}")
    if recipe.label_smoothing and task.classes:
        loss = partial(loss, label_smoothing=recipe.label_smoothing)
    outputs = outputs.float()
    if mixed is None:
        return loss(outputs, y)
    partners, share = mixed
    return share * loss(outputs, y) + (1 - share) * loss(outputs, partners)
