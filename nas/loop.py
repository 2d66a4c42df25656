"""The steps of one training: batches, loss, descent averaged weights; step s draws only from (seed, s)."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.augment import Policy, augment, mixup
from nas.averaging import Average, copied
from nas.captured import Captured, recorder, tensors_in
from nas.cell import Cell
from nas.errors import ConfigError, DataError, TrialError
from nas.oneshot.fused.execution import execute_cells
from nas.recipe import Precision, Recipe, learning_rate
from nas.resting import Resting
from nas.seeding import derive, seed_global, torch_rng
from nas.streams import Streams
from nas.task import Split, Task
from nas.team import ALONE, Team

Output = Tensor | tuple[Tensor, Tensor | None]
"""Logits `[B, classes]`; a network in training mode may add those of its auxiliary head."""

Forward = Callable[[nn.Module, Tensor, int], Output]
"""How step s runs the network: `forward(network, x, s)`, for example the mixture of a supernet."""

Backward = Callable[["Loop"], Tensor]
"""Puts the gradients of the coming step in place and returns its loss; `one_pass` unless given."""

Targets = tuple[Tensor, tuple[Tensor, Tensor] | None]
"""Labels `[B]` and, under mixup, those of the partners `[B]` with the share of the first."""

Batch = tuple[Tensor, Targets]
"""Images `[B, C, H, W]` and their targets."""

# Reading a number back from the device waits for it, so divergence is looked for only now and then.
_CHECK_STEPS = 50


class Loop:
    """A training that can be advanced one step at a time, and saved and restored between any two steps.

    step: steps done, of `steps` in all; `steps_per_epoch` leaves out a last partial batch.
    seconds: time spent on the current epoch so far.
    weight_decay: the recipe's, unless it was changed on the way.
    drop_path: the probability of the present epoch.
    images: how many images a step holds in this process; fewer than `batch` in a team.
    record: what captures steps, see `nas.captured`; None where nothing does.
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
        team: Team = ALONE,
    ) -> None:
        """As described.

        team: the processes that divide every batch among them and then move alike, see `nas.team`.
        form: what `forward` and `backward` read in Python and may change between steps; None while their
          steps cannot be captured.
        before: runs in every step, which has drawn its batch, before the network draws anything.
        """
        self.network, self.task, self.recipe, self.seed = network, task, recipe, seed
        self.split, self.forward, self._backward = split, forward, backward or one_pass
        self.parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.device = _shared_device(self.parameters, split)
        self._batches = Batches(split, task, policy_of(recipe, task), size=recipe.batch, seed=seed)
        self.batch, self.steps_per_epoch = self._batches.size, self._batches.per_epoch
        self.team, self.images = team, images_of(team, self.batch)
        self.steps = recipe.epochs * self.steps_per_epoch
        self.step = 0
        self.seconds = 0.0
        self.weight_decay = recipe.weight_decay
        self.drop_path = recipe.drop_path
        set_drop_path(network, self.drop_path)
        execute_cells(network, recipe.execution, self.device)
        if self.device.type == "cuda":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = Average(network, recipe.ema) if recipe.ema else None
        # What ranks say to each other in a step is not on the device, so that no graph could hold it.
        captures = recipe.graph and team.size == 1 and form() is not None
        self.record = recorder(self.device) if captures else None
        self._form, self._before = form, before
        self._streams = Streams(self.record, ("step",))
        self._captured = Captured(self.do, self.moved, self.record, self.generators)
        self._batch: Batch | None = None
        self._drops = torch.zeros((), device=self.device)
        self._optimizer = torch.optim.SGD(
            self.parameters.values(),
            # A number would stay in a captured step what it was.
            lr=recipe.lr if self.record is None else torch.tensor(recipe.lr, device=self.device),
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=None if self.record is None else True,
        )
        self.resting = Resting(())
        self._loss_sum = torch.zeros((), device=self.device)

    @property
    def lr(self) -> float:
        """The learning rate of the last step done; before the first, that of the first."""
        return learning_rate(self.recipe, max(0, self.step - 1), steps_per_epoch=self.steps_per_epoch)

    @property
    def next_lr(self) -> float:
        """The learning rate of the coming step."""
        return learning_rate(self.recipe, self.step, steps_per_epoch=self.steps_per_epoch)

    @property
    def rate(self) -> float | Tensor:
        """The same, of a step that may be captured as a scalar on the device; see `set_rates`."""
        lr: float | Tensor = self._optimizer.param_groups[0]["lr"]
        return lr if isinstance(lr, Tensor) else self.next_lr

    def descent(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Turns gradients in place into what the coming step would subtract per unit of learning rate.

        gradients: one for each of `parameters`, unclipped. Momentum and weight decay are included, Nesterov's
          look-ahead is not.
        """
        for gradient, parameter in zip(gradients, self.parameters.values(), strict=True):
            gradient.add_(parameter.detach(), alpha=self.weight_decay)
            slot = self._optimizer.state[parameter].get("momentum_buffer")
            if slot is not None:
                gradient.add_(slot, alpha=self.recipe.momentum)
        return gradients

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step done was the last of its epoch."""
        return self.step > 0 and self.step % self.steps_per_epoch == 0

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
        self._set_drop_path()
        for group in self._optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.next_lr)
            else:
                group["lr"] = self.next_lr
            group["weight_decay"] = self.weight_decay

    def key(self) -> Hashable:
        """What the coming step reads of Python; None where it cannot be captured."""
        form = self._form()
        return None if form is None else (form, self.drop_path > 0, self.weight_decay)

    def end_step(self) -> None:
        """What follows a step that has been done."""
        if self._average is not None:
            self._average.update(self.network, self.step)
        self.step += 1
        if self.step % _CHECK_STEPS == 0:
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

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Runs a block on the averaged weights, where the recipe keeps any."""
        if self._average is None:
            yield
            return
        own = copied(self.network.state_dict())
        self.network.load_state_dict(self._average.state)
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, beside the settings and `step`."""
        slots = {n: self._optimizer.state[p].get("momentum_buffer") for n, p in self.parameters.items()}
        return {
            "network": self.network.state_dict(),
            "average": self._average.state if self._average is not None else {},
            "momentum": {name: slot for name, slot in slots.items() if slot is not None},
            "loss_sum": self._loss_sum,
            "seconds": self.seconds,
            "weight_decay": self.weight_decay,
        }

    def settings(self) -> dict[str, Any]:
        """What must be the same for a saved state to be taken up again."""
        layout = [(n, tuple(t.shape), str(t.dtype)) for n, t in self.network.state_dict().items()]
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "seed": self.seed,
            "network": hashlib.sha256(repr(layout).encode()).hexdigest(),
            "data": self.task.fingerprint,
            "split": len(self.split),
        }

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
        self._optimizer.state.clear()
        for name, slot in state["momentum"].items():
            parameter = self.parameters[name]
            self._optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(slot)

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
        self._set_drop_path()
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
        part = self.team.part
        x, y = self._batches.draw()
        if not self.recipe.mixup:
            return to_layout(part(x)), (part(y), None)
        x, partners, share = mixup(x, y, self.recipe.mixup, self._batches.generator)
        return to_layout(part(x)), (part(y), (part(partners), share))

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

    def _set_drop_path(self) -> None:
        epoch = self.step // self.steps_per_epoch
        drop_path = self.recipe.drop_path * epoch / self.recipe.epochs
        if drop_path == self.drop_path:
            return
        self.drop_path = drop_path
        if self.record is None or not drop_path:
            set_drop_path(self.network, drop_path)
            return
        # A number would stay in a captured step what it was.
        self._drops.fill_(drop_path)
        set_drop_path(self.network, self._drops)

    def do(self) -> None:
        """A step, once it has begun."""
        self._optimizer.zero_grad()
        with self.one_batch():
            self._before()
            with self._streams.at("step", self.seed_of_step):
                loss = self._backward(self)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        with self.resting.during(self._optimizer):
            self._optimizer.step()
        self._loss_sum += loss.detach()

    def moved(self) -> Iterator[Tensor]:
        """All tensors that a step changes."""
        yield from (*self.network.parameters(), *self.network.buffers(), self._loss_sum)
        yield from tensors_in(list(self._optimizer.state.values()))

    def criterion(self, output: Output, targets: Targets) -> Tensor:
        """The recipe's loss of what the network gave."""
        logits, auxiliary = output if isinstance(output, tuple) else (output, None)
        loss = self._cross_entropy(logits, targets)
        if not self.recipe.auxiliary:
            return loss
        if auxiliary is None:
            raise ConfigError(
                f"recipe: auxiliary is {self.recipe.auxiliary}, but {type(self.network).__name__} has no "
                "auxiliary head; set it to 0 or return (logits, auxiliary logits) in training mode"
            )
        return loss + self.recipe.auxiliary * self._cross_entropy(auxiliary, targets)

    def _cross_entropy(self, logits: Tensor, targets: Targets) -> Tensor:
        y, mixed = targets
        wanted = (len(y), self.task.num_classes)
        if tuple(logits.shape) != wanted:
            raise TrialError(
                "build", f"train: the network gave logits {tuple(logits.shape)}, wanted {wanted}"
            )
        logits, smoothing = logits.float(), self.recipe.label_smoothing
        loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
        if mixed is None:
            return loss
        partners, share = mixed
        return share * loss + (1 - share) * F.cross_entropy(logits, partners, label_smoothing=smoothing)

    def _check_finite(self) -> None:
        weights = nn.utils.get_total_norm(self.parameters.values())
        if not (self._loss_sum + weights).isfinite():
            raise TrialError(
                "nan",
                f"train: loss or weights are not finite at step {self.step}, "
                f"epoch {(self.step - 1) // self.steps_per_epoch + 1}, lr {self.lr:.3g}; "
                "lower the learning rate",
            )


def one_pass(loop: Loop) -> Tensor:
    """One pass forward and backward."""
    loss = loop.loss()
    if not loss.requires_grad:
        raise TrialError("no-grad", f"train: the loss of step {loop.step} depends on no trainable parameter")
    loss.backward()  # type: ignore[no-untyped-call]
    return loop.combined(loss)


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


def policy_of(recipe: Recipe, task: Task) -> Policy:
    """The augmentation that a recipe asks for and the task's images allow."""
    return Policy(pad=task.pad if recipe.crop else 0, flip=recipe.flip and task.flip, cutout=recipe.cutout)


class Batches:
    """The augmented batches of one split, without end; batch s is a pure function of (seed, s).

    size: images per batch, at most the whole split; a last partial batch of an epoch is left out.
    generator: the stream of the prepared step.
    """

    def __init__(self, split: Split, task: Task, policy: Policy, *, size: int, seed: int) -> None:
        self.split, self.task, self.policy, self.seed = split, task, policy, seed
        self.size = min(size, len(split))
        self.per_epoch = len(split) // self.size
        device = split.x.device
        self.generator = torch.Generator(device)
        self._epoch, self._order = -1, torch.empty(0)
        self._index = torch.empty(self.size, dtype=torch.int64, device=device)

    def at(self, step: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Images `[B, C, H, W]`, labels `[B]`, and the stream for whatever else the step draws."""
        self.prepare(step)
        return *self.draw(), self.generator

    def prepare(self, step: int) -> None:
        """Sets what `draw` reads, in place: which images they are, and where the stream begins."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.split), generator=torch_rng(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.split.x.device)
        self._index.copy_(self._order[position * self.size : (position + 1) * self.size])
        self.generator.manual_seed(derive(self.seed, "augment", step))

    def draw(self) -> tuple[Tensor, Tensor]:
        """Images and labels of the prepared step: the same work on the device, whichever step it is.

        It waits for nothing and no shape depends on a value, so that a CUDA graph in which `generator` is
        registered can hold it.
        """
        x, y = (tensor.index_select(0, self._index) for tensor in (self.split.x, self.split.y))
        return augment(x, self.task, self.policy, self.generator), y


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


def precision(device: torch.device, wanted: Precision = "auto") -> torch.autocast:
    """The arithmetic of a forward pass: as wanted, or bfloat16 where safe on CUDA and float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half(device, wanted))


def is_half(device: torch.device, wanted: Precision = "auto") -> bool:
    """Whether that arithmetic is bfloat16."""
    return device.type == "cuda" if wanted == "auto" else wanted == "bfloat16"


def to_layout(x: Tensor) -> Tensor:
    """A batch `[B, C, H, W]` in the memory layout that is computed fastest in, on CPUs too: channels last."""
    return x.contiguous(memory_format=torch.channels_last)


def _shared_device(parameters: Mapping[str, nn.Parameter], split: Split) -> torch.device:
    if not parameters:
        raise TrialError("no-grad", "train: the network has no trainable parameter")
    if len(split) < 2:
        raise DataError(f"train: the split has {len(split)} images, but batch statistics need at least 2")
    device = next(iter(parameters.values())).device
    if split.x.device != device:
        raise ConfigError(
            f"train: the network is on {device}, the images on {split.x.device}; "
            f"call task.to({str(device)!r})"
        )
    return device
