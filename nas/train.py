"""Training one network by a recipe, exact to the step: everything random about step s follows from (seed, s).

A checkpoint therefore holds no generator state, and a killed and resumed training equals the uninterrupted
one bit for bit on the CPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import devices, resumable
from nas.arithmetic import precision, to_layout
from nas.checkpoint import Checkpoints
from nas.criterion import Output
from nas.drop_path import set_drop_path
from nas.errors import ConfigError, DataError, TrialError
from nas.guard import memory_errors
from nas.loop import Backward, Forward, Loop
from nas.recipe import Recipe
from nas.resumable import Stopped
from nas.seeding import isolated
from nas.task import Split, Task
from nas.team import ALONE, Team

__all__ = [
    "Curve",
    "EpochReport",
    "Forward",
    "Output",
    "Stopped",
    "evaluate",
    "predictions",
    "set_drop_path",
    "train",
]


@dataclass(frozen=True)
class Curve:
    """How a training went.

    train_loss: [epochs] mean of the minimised loss (smoothing, mixup and auxiliary head included).
    lr: [epochs] learning rate of each epoch's last step.
    seconds: [epochs] time spent training, evaluation not included.
    val_epochs: [evaluations] epochs, counted from 1, after which the network was evaluated.
    val_loss, val_acc: [evaluations] mean cross-entropy in nats, and accuracy in [0, 1].
    """

    train_loss: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    val_epochs: tuple[int, ...] = ()
    val_loss: tuple[float, ...] = ()
    val_acc: tuple[float, ...] = ()

    @property
    def final_val_loss(self) -> float | None:
        """The last evaluation's loss; None when nothing was evaluated."""
        return self.val_loss[-1] if self.val_loss else None

    @property
    def final_val_acc(self) -> float | None:
        """The last evaluation's accuracy in [0, 1]; None when nothing was evaluated."""
        return self.val_acc[-1] if self.val_acc else None

    def extended(self, report: EpochReport) -> Curve:
        """This curve and one more epoch."""
        longer = dataclasses.replace(
            self,
            train_loss=(*self.train_loss, report.train_loss),
            lr=(*self.lr, report.lr),
            seconds=(*self.seconds, report.seconds),
        )
        if report.val_loss is None or report.val_acc is None:
            return longer
        return dataclasses.replace(
            longer,
            val_epochs=(*self.val_epochs, report.epoch),
            val_loss=(*self.val_loss, report.val_loss),
            val_acc=(*self.val_acc, report.val_acc),
        )


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch, counted from 1 to `epochs`; the fields are those of `Curve`."""

    epoch: int
    epochs: int
    train_loss: float
    lr: float
    seconds: float
    val_loss: float | None = None
    val_acc: float | None = None


def train(
    network: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    split: Split | None = None,
    evaluate_on: Split | None = None,
    evaluate_every: int | None = 1,
    until: int | None = None,
    start: Checkpoints | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 60.0,
    on_epoch: Callable[[EpochReport], None] | None = None,
    forward: Forward | None = None,
    backward: Backward | None = None,
    stop: Callable[[], bool] | None = None,
    left_s: Callable[[], float] | None = None,
    team: Team = ALONE,
) -> Curve:
    """Trains `network` in place, where its parameters are, and returns its curve.

    split: the images to learn from, `task.train` by default. A last partial batch is left out.
    evaluate_on: evaluated every `evaluate_every` epochs, unless that is None, at the recipe's restarts and
      after the last epoch.
    until: pauses after so many epochs, its checkpoint kept: a later call with the same recipe, seed and
      checkpoints goes on, and in the end equals one call bit for bit on the CPU. A pause evaluates nothing of
      its own.
    start: those of another training of the same network, whose last weights and momentum this one begins
      with, e.g. on more or larger images.
    checkpoints: where to resume from, and where to save to after each epoch and every `checkpoint_seconds`.
    on_epoch: called after each epoch, its checkpoint already written.
    forward: how step s runs the network, as `forward(network, x, s)`; plain `network(x)` by default.
    backward: puts the gradients of a step in place and returns its loss; one pass by default.
    stop: asked before every step; when true, a checkpoint is written and `Stopped` is raised.
    left_s: seconds left, asked after every step; when there are none, that step was the last one, its epoch
      ends with it and the network stays as it is. Not for a team.
    team: all of its ranks train the same network together, see `nas.team`; rank 0 alone evaluates and saves.

    On CUDA the network becomes channels-last and computes in bfloat16; on the CPU everything is float32.
    With `recipe.ema` the averaged weights are evaluated and, at the end, left in the network; it stays in
    training mode.
    """
    if evaluate_every is not None and evaluate_every < 1:
        raise ConfigError(f"train: evaluate_every is {evaluate_every}, but must be at least 1")
    if until is not None and not 1 <= until <= recipe.epochs:
        raise ConfigError(
            f"train: until is {until}, but must be at least 1 and at most epochs, {recipe.epochs}"
        )

    def whole(network: nn.Module, x: Tensor, _: int) -> Output:
        loop.apart()
        output: Output = network(x)
        return output

    loop = Loop(
        network,
        task,
        recipe,
        seed=seed,
        split=task.train if split is None else split,
        forward=forward or whole,
        backward=backward,
        form=lambda: () if forward is None and backward is None else None,
        team=team,
    )
    if start is not None:
        _inherit(loop, start)
    last = recipe.epochs if until is None else until
    work = _Training(loop, evaluate_on, evaluate_every, last, left_s)
    with isolated(seed, "train"), memory_errors(f"training at batch {loop.images}"):
        network.train()
        resumable.run(
            work,
            what="train",
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=on_epoch,
            stop=stop,
            team=team,
        )
        loop.finish()
    return work.curve


def evaluate(network: nn.Module, task: Task, split: Split, *, batch: int = 512) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in [0, 1] on `split`, in evaluation mode, on its device.

    batch: images at once; halved where memory runs out.
    """
    if not len(split):
        raise DataError("evaluate: the split has no images")
    loss, hits = torch.zeros((), device=split.x.device), torch.zeros((), device=split.x.device)
    with evaluating(network), torch.no_grad():
        for logits, y in _in_portions(network, task, split, batch):
            loss += F.cross_entropy(logits, y, reduction="sum")
            hits += (logits.argmax(1) == y).sum()
        return loss.item() / len(split), hits.item() / len(split)


def predictions(network: nn.Module, task: Task, split: Split, *, batch: int = 512) -> Tensor:
    """The class number `[N]` that `network` gives each image of `split`, in evaluation mode."""
    with evaluating(network), torch.no_grad():
        return torch.cat([logits.argmax(1) for logits, _ in _in_portions(network, task, split, batch)])


def _in_portions(network: nn.Module, task: Task, split: Split, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, portion by portion; the portions halve where memory runs out."""
    at = 0
    while at < len(split):
        x, y = split.x[at : at + batch], split.y[at : at + batch]
        try:
            with memory_errors(f"evaluating at batch {len(x)}"):
                logits = _logits(network, task, x)
        except TrialError as error:
            if error.reason != "oom" or len(x) == 1:
                raise
            batch = len(x) // 2
        else:
            yield logits, y
            at += len(x)
            continue
        devices.release()  # outside of the handler: what failed is kept alive by its traceback


class _Training:
    """A loop with its curve and evaluations, as a `Resumable`."""

    def __init__(
        self,
        loop: Loop,
        evaluate_on: Split | None,
        evaluate_every: int | None,
        until: int,
        left_s: Callable[[], float] | None,
    ) -> None:
        self.loop, self.until, self.left_s = loop, until, left_s
        self.evaluate_on, self.evaluate_every = evaluate_on, evaluate_every
        self.curve, self.cut = Curve(), False

    @property
    def step(self) -> int:
        return self.loop.step

    @property
    def steps(self) -> int:
        return self.loop.step if self.cut else self.until * self.loop.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        return self.cut or self.loop.at_epoch_end

    def advance(self) -> None:
        self.loop.advance()
        self.cut = self.left_s is not None and self.left_s() <= 0

    def end_epoch(self) -> EpochReport:
        loop = self.loop
        epoch, epochs, lr = -(-loop.step // loop.steps_per_epoch), loop.recipe.epochs, loop.lr
        loss, seconds = loop.end_epoch()
        report = EpochReport(epoch, epochs, loss, lr, seconds)
        if self.evaluate_on is not None and self._is_evaluated(epoch):
            with loop.averaged():
                val_loss, val_acc = evaluate(loop.network, loop.task, self.evaluate_on)
            if not math.isfinite(val_loss):
                raise TrialError(
                    "nan",
                    f"train: validation loss is {val_loss} after epoch {epoch}; lower the learning rate",
                )
            report = dataclasses.replace(report, val_loss=val_loss, val_acc=val_acc)
        self.curve = self.curve.extended(report)
        return report

    def state(self) -> Mapping[str, Any]:
        curve = {name: list(values) for name, values in dataclasses.asdict(self.curve).items()}
        return {"loop": self.loop.state(), "curve": curve, "cut": self.cut}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        if step > self.steps:
            raise ConfigError(
                f"train: the checkpoint is after step {step}, but until is {self.until}, which ends at step "
                f"{self.steps}; ask for more epochs, or clear the checkpoints to start anew"
            )
        self.loop.restore(step, state["loop"])
        self.cut = bool(state.get("cut", False))
        self.curve = Curve(**{name: tuple(values) for name, values in state["curve"].items()})

    def settings(self) -> Mapping[str, Any]:
        evaluation = [0 if self.evaluate_on is None else len(self.evaluate_on), self.evaluate_every]
        return {**self.loop.settings(), "evaluation": evaluation}

    def replicas(self) -> Iterable[Tensor]:
        return self.loop.parameters.values()

    def _is_evaluated(self, epoch: int) -> bool:
        every = self.evaluate_every
        if self.cut and every is not None:
            return True
        return epoch in self.loop.recipe.ends or (every is not None and epoch % every == 0)


def _inherit(loop: Loop, start: Checkpoints) -> None:
    saved = start.load()
    if saved is None:
        raise ConfigError("train: start has no checkpoint to begin with; finish that training first")
    loop.inherit(saved[1]["work"]["loop"])


def _logits(network: nn.Module, task: Task, x: Tensor) -> Tensor:
    with precision(x.device):
        output: Output = network(to_layout(task.normalise(x)))
    return (output[0] if isinstance(output, tuple) else output).float()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Runs a block in evaluation mode, then gives every module its own mode back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
