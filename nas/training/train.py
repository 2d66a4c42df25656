"""Training one network by a recipe, exact to the step: everything random about step s follows from (seed, s).

A checkpoint therefore holds no generator state, and a killed and resumed training equals the uninterrupted
one bit for bit on the CPU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.task import Split, Task
from nas.errors import ConfigError, TrialError
from nas.seeding import isolated
from nas.training import resumable
from nas.training.checkpoint import Checkpoints
from nas.training.cuda_graph import GraphedStep
from nas.training.ddp import ALONE, Team
from nas.training.evaluate import Batch, evaluate
from nas.training.loop import Gradients, Loop
from nas.training.recipe import Recipe
from nas.user_code import memory_errors


@dataclass(frozen=True)
class Curve:
    """How a training went.

    train_loss: [epochs] mean of the minimised loss (smoothing, mixup and auxiliary head included).
    lr: [epochs] learning rate of each epoch's last step.
    seconds: [epochs] time spent training, evaluation not included.
    val_epochs: [evaluations] epochs, counted from 1, after which the network was evaluated.
    val_loss, val_score: [evaluations] mean loss and mean score, such as cross-entropy in nats and accuracy.
    metric: what the latter is called, e.g. `val_acc`.
    """

    train_loss: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    val_epochs: tuple[int, ...] = ()
    val_loss: tuple[float, ...] = ()
    val_score: tuple[float, ...] = ()
    metric: str = ""

    @classmethod
    def of(cls, reports: Sequence[EpochReport]) -> Curve:
        """The curve of a training's epochs."""
        evaluated = [
            (r.epoch, r.val_loss, r.val_score)
            for r in reports
            if r.val_loss is not None and r.val_score is not None
        ]
        return cls(
            train_loss=tuple(r.train_loss for r in reports),
            lr=tuple(r.lr for r in reports),
            seconds=tuple(r.seconds for r in reports),
            val_epochs=tuple(epoch for epoch, _, _ in evaluated),
            val_loss=tuple(loss for _, loss, _ in evaluated),
            val_score=tuple(score for _, _, score in evaluated),
            metric=next((r.metric for r in reports), ""),
        )

    def reports(self) -> Iterator[EpochReport]:
        """Every epoch of it."""
        evaluated = {e: pair for e, *pair in zip(self.val_epochs, self.val_loss, self.val_score, strict=True)}
        epochs, rows = len(self.train_loss), zip(self.train_loss, self.lr, self.seconds, strict=True)
        for epoch, row in enumerate(rows, start=1):
            loss, score = evaluated.get(epoch, (None, None))
            yield EpochReport(epoch, epochs, *row, val_loss=loss, val_score=score, metric=self.metric)


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch, counted from 1 to `epochs`; the fields are those of `Curve`."""

    epoch: int
    epochs: int
    train_loss: float
    lr: float
    seconds: float
    val_loss: float | None = None
    val_score: float | None = None
    metric: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """All that was measured in it, by name."""
        names = ("train_loss", "lr", "seconds", "val_loss")
        values = {**{name: getattr(self, name) for name in names}, self.metric: self.val_score}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        """In words."""
        return f"epoch {self.epoch}: loss {self.train_loss:.3f}, {self.seconds:.1f} s"


@dataclass(frozen=True)
class Evaluation:
    """On which images a training is evaluated: every so many epochs, at restarts and after the last epoch.

    every: None where only the latter two count.
    """

    split: Split
    every: int | None = 1

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ConfigError(f"train: evaluate every {self.every} epochs, but must be at least 1")


@dataclass(frozen=True)
class Control:
    """How a training is saved, told of and ended.

    checkpoints: where to resume from, and where to save to after each epoch and as often as they say.
    on_epoch: called after each epoch, its checkpoint already written.
    stop: asked before every step; when true, a checkpoint is written and `Stopped` is raised.
    until: pauses after so many epochs, its checkpoint kept: a later call with the same recipe, seed and
      checkpoints goes on, and in the end equals one call bit for bit on the CPU. A pause evaluates nothing of
      its own.
    elapsed: share of its time that is over, asked before and after every step, where a training has a time
      and not a number of epochs: its schedule follows that, and with 1 it ends. Not for a team.
    team: all of its ranks train the same network together, see `nas.training.ddp`; rank 0 alone evaluates
      and saves.
    """

    checkpoints: Checkpoints | None = None
    on_epoch: Callable[[EpochReport], None] | None = None
    stop: Callable[[], bool] | None = None
    until: int | None = None
    elapsed: Callable[[], float] | None = None
    team: Team = ALONE


def train(
    network: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    split: Split | None = None,
    evaluation: Evaluation | None = None,
    start: Checkpoints | None = None,
    passes: int = 1,
    gradients: Gradients | None = None,
    control: Control = Control(),
) -> Curve:
    """Trains `network` in place, where its parameters are, and returns its curve.

    split: the images to learn from, `task.train` by default. A last partial batch is left out.
    start: those of another training of the same network, whose last weights and momentum this one begins
      with, e.g. on more or larger images.
    passes: parts that each batch is divided into to save memory, see `nas.training.loop.accumulate`.
    gradients: puts the gradients of a step in place and returns its loss, where that is not the loss of a
      plain call of the network; batch-norm statistics are then those of its own calls, and stay as they are.

    On CUDA the network becomes channels-last and computes in bfloat16; on the CPU everything is float32. The
    batch-norm statistics of a short training are taken anew before it is evaluated and in the end, see
    `nas.training.evaluate.reestimate`. With `recipe.ema` the averaged weights are evaluated and, at the end,
    left in the network; it stays in training mode.
    """
    until, elapsed, team = control.until, control.elapsed, control.team
    if until is not None and not 1 <= until <= recipe.epochs:
        raise ConfigError(
            f"train: until is {until}, but must be at least 1 and at most epochs, {recipe.epochs}"
        )
    split = task.train if split is None else split
    loop = Loop(network, task, recipe, seed=seed, split=split, passes=passes, elapsed=elapsed, team=team)
    if start is not None:
        _inherit(loop, start)
    last = recipe.epochs if until is None else until
    work = _Training(loop, evaluation, last, gradients=gradients, elapsed=elapsed)
    with isolated(seed, "train"), memory_errors(f"training at batch {loop.images}"):
        network.train()
        resumable.run(
            work,
            what="train",
            checkpoints=control.checkpoints,
            on_epoch=control.on_epoch,
            stop=control.stop,
            team=team,
        )
        loop.finish()
        work.settle()
    return Curve.of(work.reports)


class _Training:
    """A loop with its evaluations, as a `Resumable`. reports: of the epochs done."""

    def __init__(
        self,
        loop: Loop,
        evaluation: Evaluation | None,
        until: int,
        *,
        gradients: Gradients | None,
        elapsed: Callable[[], float] | None,
    ) -> None:
        self.loop, self.until, self.elapsed, self.plain = loop, until, elapsed, gradients is None
        self.evaluation = evaluation
        self.reports: list[EpochReport] = []
        self.cut = False
        self._learn: Callable[[Batch], None] = partial(loop.learn, gradients=gradients)
        if loop.device.type == "cuda" and loop.recipe.graph and self.plain and loop.team.size == 1:
            self._learn = GraphedStep(loop.learn, moved=loop.moved, reads=lambda: loop.weight_decay)

    @property
    def step(self) -> int:
        return self.loop.step

    @property
    def steps(self) -> int:
        if self.elapsed is not None:
            return self.loop.step if self.cut else self.loop.step + 1
        return self.until * self.loop.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        return self.cut or self.loop.at_epoch_end

    def advance(self) -> None:
        self.loop.advance(self._learn)
        self.cut = self.elapsed is not None and self.elapsed() >= 1

    def end_epoch(self) -> EpochReport:
        loop = self.loop
        epoch, epochs, lr = -(-loop.step // loop.steps_per_epoch), loop.recipe.epochs, loop.lr
        loss, seconds = loop.end_epoch()
        report = EpochReport(epoch, epochs, loss, lr, seconds, metric=loop.task.problem.val)
        if self.evaluation is not None and self._is_evaluated(epoch, self.evaluation.every):
            with nullcontext() if loop.ema is None else loop.ema.during(loop.network):
                self.settle()
                val_loss, val_score = evaluate(loop.network, loop.task, self.evaluation.split)
            if not math.isfinite(val_loss):
                raise TrialError(
                    "nan",
                    f"train: validation loss is {val_loss} after epoch {epoch}; lower the learning rate",
                )
            report = dataclasses.replace(report, val_loss=val_loss, val_score=val_score)
        self.reports.append(report)
        return report

    def settle(self) -> None:
        if self.plain:
            self.loop.settle()

    def state(self) -> Mapping[str, Any]:
        reports = [dataclasses.asdict(report) for report in self.reports]
        return {"loop": self.loop.state(), "reports": reports, "cut": self.cut}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        if self.elapsed is None and step > self.steps:
            raise ConfigError(
                f"train: the checkpoint is after step {step}, but until is {self.until}, which ends at step "
                f"{self.steps}; ask for more epochs, or clear the checkpoints to start anew"
            )
        self.loop.restore(step, state["loop"])
        self.cut, self.reports = state["cut"], [EpochReport(**report) for report in state["reports"]]

    def settings(self) -> Mapping[str, Any]:
        found = [] if self.evaluation is None else [len(self.evaluation.split), self.evaluation.every]
        return {**self.loop.settings(), "evaluation": found}

    def replicas(self) -> Iterable[Tensor]:
        return self.loop.parameters.values()

    def _is_evaluated(self, epoch: int, every: int | None) -> bool:
        if self.cut and every is not None:
            return True
        return epoch in self.loop.recipe.ends or (every is not None and epoch % every == 0)


def _inherit(loop: Loop, start: Checkpoints) -> None:
    saved = start.load()
    if saved is None:
        raise ConfigError("train: start has no checkpoint to begin with; finish that training first")
    state, recipe = saved[1]["work"]["loop"], loop.recipe
    fresh = {"average": state["network"], "loss_sum": torch.zeros(()), "seconds": 0.0}
    loop.restore(0, {**state, **fresh, "weight_decay": recipe.weight_decay})
