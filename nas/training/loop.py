"""The steps of one training; what is random about step s follows from (seed, s) alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nas.oneshot.fused.execution import execute_cells
from nas.seeding import derive, seed_global
from nas.task import Split, Task
from nas.training.arithmetic import precision
from nas.training.averaging import Average
from nas.training.batches import Batch, Batches, images_of, mixed, policy_of
from nas.training.batchnorm import SHORT, reestimate
from nas.training.captured import Captured, recorder
from nas.training.criterion import Output, Targets, criterion
from nas.training.descent import Descent
from nas.training.drop_path import DropPath, set_drop_path
from nas.training.recipe import Precision, Recipe, learning_rate
from nas.training.resting import Resting
from nas.training.soundness import CHECK_STEPS, check_depends, check_finite, described, shared_device
from nas.training.streams import Streams
from nas.training.team import ALONE, Team

Forward = Callable[[nn.Module, Tensor, int], Output]
"""How step s runs the network: `forward(network, x, s)`, for example the mixture of a supernet."""

Backward = Callable[["Loop"], Tensor]
"""Puts the gradients of the coming step in place and returns its loss; `one_pass` unless given."""


class Loop:
    """A training that can be advanced one step at a time, and saved and restored between any two steps.

    step: steps done, of `steps` in all; `steps_per_epoch` leaves out a last partial batch.
    seconds: time spent on the current epoch so far.
    weight_decay: the recipe's, unless it was changed on the way.
    images: how many images a step holds in this process; fewer than `batch` in a team.
    record: what captures steps, see `nas.training.captured`; None where nothing does.
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
        forward: Forward,
        backward: Backward | None = None,
        form: Callable[[], Hashable] = lambda: None,
        before: Callable[[], None] = lambda: None,
        elapsed: Callable[[], float] | None = None,
        team: Team = ALONE,
    ) -> None:
        """As described.

        elapsed: share in [0, 1] of the training's time that is over, where that is what its schedule follows;
          else it follows the steps.

        team: the processes that divide every batch among them and then move alike, see `nas.training.team`.
        form: what `forward` and `backward` read in Python and may change between steps; None while their
          steps cannot be captured.
        before: runs in every step, which has drawn its batch, before the network draws anything.
        """
        self.network, self.task, self.recipe, self.seed = network, task, recipe, seed
        self.split, self.forward, self._backward = split, forward, backward or one_pass
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.device = shared_device(self.parameters, split)
        self._batches = Batches(split, task, policy_of(recipe, task), size=recipe.batch, seed=seed)
        self.batch, self.steps_per_epoch = self._batches.size, self._batches.per_epoch
        self.team, self.images = team, images_of(team, self.batch)
        self.steps = recipe.epochs * self.steps_per_epoch
        self.step = 0
        self._elapsed, self._elapsed_steps = elapsed, 0
        self.seconds = 0.0
        self.weight_decay = recipe.weight_decay
        # Before `form` is asked, which may depend on how cells run.
        execute_cells(network, recipe.execution, self.device)
        if self.device.type == "cuda":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # What ranks say to each other in a step is not on the device, so that no graph could hold it.
        captures = recipe.graph and team.size == 1 and form() is not None
        self.record = recorder(self.device) if captures else None
        captured = self.record is not None
        self._drop_path = DropPath(network, recipe, self.device, captured=captured)
        self._average: Average | None = None
        if recipe.ema:
            self._average = Average(network, recipe.ema, self.device, captured=captured)
        self._form, self._before = form, before
        self._streams = Streams(self.record, ("step",))
        self._captured = Captured(self.do, self.moved, self.record, self.generators)
        self._batch: Batch | None = None
        self._descent = Descent(self.parameters, recipe, self.device, captured=captured)
        self.resting = Resting(())
        self._loss_sum = torch.zeros((), device=self.device)

    @property
    def lr(self) -> float:
        """The learning rate of the last step done; before the first, that of the first."""
        step = max(0, self.step - 1) if self._elapsed is None else self._elapsed_steps
        return learning_rate(self.recipe, step, steps_per_epoch=self.steps_per_epoch)

    @property
    def next_lr(self) -> float:
        """The learning rate of the coming step."""
        return learning_rate(self.recipe, self.scheduled, steps_per_epoch=self.steps_per_epoch)

    @property
    def scheduled(self) -> int:
        """Where the coming step is in the schedule, in steps."""
        return self.step if self._elapsed is None else self._elapsed_steps

    @property
    def rate(self) -> float | Tensor:
        """The same, of a step that may be captured as a scalar on the device; see `set_rates`."""
        rate = self._descent.rate
        return rate if isinstance(rate, Tensor) else self.next_lr

    @property
    def drop_path(self) -> float:
        """The drop-path probability of the present epoch."""
        return self._drop_path.probability

    def descent(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Turns gradients in place into what the coming step would subtract, see `Descent.direction`."""
        return self._descent.direction(gradients, self.weight_decay)

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step done was the last of its epoch."""
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    @property
    def captured(self) -> Captured:
        """Its steps."""
        return self._captured

    def advance(self, begin: Callable[[], None] = lambda: None) -> None:
        """Does one step. begin: sets whatever else the step finds in place, to where it begins."""
        started = time.perf_counter()
        self.set_rates()

        def begin_all() -> None:
            begin()
            self.begin()

        self._captured.run(self.key(), begin_all)
        self.end_step()
        self.seconds += time.perf_counter() - started

    def set_rates(self) -> None:
        """Sets what the coming step reads and follows a schedule."""
        if self._elapsed is not None:
            self._elapsed_steps = min(self.steps - 1, int(self._elapsed() * self.steps))
        self._drop_path.follow(self.scheduled // self.steps_per_epoch)
        self._descent.set(self.next_lr, self.weight_decay)
        if self._average is not None:
            self._average.follow(self.step)

    def key(self) -> Hashable:
        """What the coming step reads of Python; None where it cannot be captured."""
        form = self._form()
        return None if form is None else (form, self.drop_path > 0, self.weight_decay)

    @property
    def has_waited(self) -> bool:
        """Whether the last step done was one after which the device is waited for."""
        return self.step % CHECK_STEPS == 0

    def end_step(self) -> None:
        """What follows a step that has been done."""
        self.step += 1
        if self.has_waited:
            self._check_finite()

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

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the settings and `step`."""
        return {
            "network": self.network.state_dict(),
            "average": self._average.state if self._average is not None else {},
            "momentum": self._descent.momentum,
            "loss_sum": self._loss_sum,
            "seconds": self.seconds,
            "weight_decay": self.weight_decay,
        }

    def settings(self) -> dict[str, Any]:
        """What must be the same for a saved state to be taken up again."""
        return described(self.network, self.task, self.split, self.recipe, seed=self.seed)

    def draws_from(self, generators: Sequence[torch.Generator]) -> None:
        """Says what else than `generators` its steps draw from."""
        self._captured = Captured(self.do, self.moved, self.record, [*self.generators, *generators])

    def forget(self) -> None:
        """Forgets what was captured."""
        self._captured.forget()

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was taken, after `step` steps."""
        self.forget()
        self.step = step
        self.seconds = state["seconds"]
        self.weight_decay = state["weight_decay"]
        self._loss_sum.copy_(state["loss_sum"])
        self.network.load_state_dict(state["network"])
        if self._average is not None:
            self._average.restore(state["average"])
        self._descent.restore(state["momentum"])

    def inherit(self, state: Mapping[str, Any]) -> None:
        """Begins with the weights and the momentum of another training of the same network."""
        fresh = {
            "average": state["network"],
            "loss_sum": torch.zeros(()),
            "seconds": 0.0,
            "weight_decay": self.recipe.weight_decay,
        }
        self.restore(0, {**state, **fresh})

    def loss(self, wanted: Precision | None = None) -> Tensor:
        """The loss of the coming step under the weights as they are; the same however often it is asked.

        wanted: arithmetic, the recipe's unless given.
        """
        x, targets = self.batch_of_step()
        with precision(self.device, wanted or self.recipe.precision):
            output = self.forward(self.network, x, self.step)
        return self.criterion(output, targets)

    def batch_of_step(self) -> Batch:
        """The coming step's images and targets; torch's global stream is set to where the step begins."""
        if self._batch is not None:
            return self._batch
        self._drop_path.follow(self.scheduled // self.steps_per_epoch)
        seed_global(self.seed_of_step)
        self._batches.prepare(self.step)
        return self._drawn()

    @property
    def generators(self) -> list[torch.Generator]:
        """What a captured step draws from, beside torch's own."""
        return [*self._streams.generators, self._batches.generator]

    def begin(self) -> None:
        """Sets the streams of the coming step, and which images it sees."""
        self._streams.begin("step", self.seed_of_step)
        self._batches.prepare(self.step)

    @contextmanager
    def one_batch(self) -> Iterator[None]:
        """Runs a block in which the batch of the coming step, once it has begun, is drawn once."""
        if self._batch is not None:
            yield
            return
        self._batch = self._drawn()
        try:
            yield
        finally:
            self._batch = None

    def _drawn(self) -> Batch:
        return mixed(self._batches, self.recipe.mixup, self.team)

    @property
    def seed_of_step(self) -> int:
        """Of what the network draws in the coming step."""
        return derive(self.seed, "step", self.step)

    def apart(self) -> None:
        """From here on what the network draws in the coming step is this rank's own."""
        self.team.apart(self.seed_of_step)

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

    def do(self) -> None:
        """A step, once it has begun."""
        self._descent.clear()
        with self.one_batch():
            self._before()
            with self._streams.at("step", self.seed_of_step):
                loss = self._backward(self)
        self._descent.step(self.resting)
        if self._average is not None:
            self._average.update(self.network)
        self._loss_sum += loss.detach()

    def moved(self) -> Iterator[Tensor]:
        """All tensors that a step changes."""
        yield from (*self.network.parameters(), *self.network.buffers(), self._loss_sum)
        yield from self._descent.moved()
        if self._average is not None:
            yield from self._average.state.values()

    def criterion(self, output: Output, targets: Targets) -> Tensor:
        """The recipe's loss of what the network gave."""
        name = type(self.network).__name__
        return criterion(output, targets, self.recipe, classes=self.task.num_classes, network=name)

    def _check_finite(self) -> None:
        epoch = (self.step - 1) // self.steps_per_epoch + 1
        check_finite(self._loss_sum, self.parameters, step=self.step, epoch=epoch, lr=self.lr)


def one_pass(loop: Loop) -> Tensor:
    """One pass forward and backward."""
    loss = loop.loss()
    check_depends(loss, loop.step)
    loss.backward()  # type: ignore[no-untyped-call]
    return loop.combined(loss)
