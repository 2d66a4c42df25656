"""The differentiable search: trains a supernet and its alphas and keeps what they preferred each epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nas import resumable
from nas.checkpoint import Checkpoints
from nas.oneshot.bilevel import Bilevel, BilevelLoop
from nas.oneshot.supernet import Supernet
from nas.seeding import isolated
from nas.task import Task
from nas.train import evaluate, memory_errors
from nas.types import Genotype


@dataclass(frozen=True, eq=False)
class Epoch:
    """The search after one more epoch.

    epoch: counted from 1 to `epochs`.
    genotype: what the alphas prefer now.
    strengths: `[O]` for each decision, the softmax of its alphas.
    train_loss: mean of the weights' loss over the epoch.
    val_acc: accuracy of the whole mixture on the validation split, in [0, 1].
    seconds: time spent, evaluation not included.
    """

    epoch: int
    epochs: int
    genotype: Genotype
    strengths: tuple[NDArray[np.float64], ...]
    train_loss: float
    val_acc: float
    seconds: float


def search(
    supernet: Supernet,
    task: Task,
    settings: Bilevel,
    *,
    seed: int,
    checkpoints: Checkpoints | None = None,
    checkpoint_seconds: float = 60.0,
    budget_s: float | None = None,
    on_epoch: Callable[[Sequence[Epoch]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Epoch]:
    """Searches in place, where the supernet's parameters are, and returns what every epoch brought.

    checkpoints: where to resume from, exactly to the step, and where to save to.
    budget_s: seconds of training after which the epoch in progress is the last one.
    on_epoch: called after each epoch with all epochs so far, those before a resumption included.
    stop: asked before every step; when true, a checkpoint is written and `Stopped` is raised.
    """
    work = _Search(BilevelLoop(supernet, task, settings, seed=seed), budget_s)
    with isolated(seed, "search"), memory_errors(f"searching at batch {work.loop.loop.batch}"):
        supernet.train()
        resumable.run(
            work,
            what="search",
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=on_epoch,
            stop=stop,
        )
    return work.epochs


class _Search:
    """A bilevel loop with the record of its epochs, as a `Resumable`."""

    def __init__(self, loop: BilevelLoop, budget_s: float | None) -> None:
        self.loop, self.budget_s = loop, budget_s
        self.epochs: list[Epoch] = []

    @property
    def step(self) -> int:
        return self.loop.loop.step

    @property
    def steps(self) -> int:
        spent = sum(epoch.seconds for epoch in self.epochs)
        done = self.budget_s is not None and spent >= self.budget_s
        return self.step if done and self.at_epoch_end else self.loop.loop.steps

    @property
    def at_epoch_end(self) -> bool:
        return self.loop.loop.at_epoch_end

    def advance(self) -> None:
        self.loop.advance()

    def end_epoch(self) -> Sequence[Epoch]:
        loss, seconds = self.loop.loop.end_epoch()
        supernet, task = self.loop.supernet, self.loop.task
        epoch = Epoch(
            epoch=len(self.epochs) + 1,
            epochs=self.loop.settings.weights.epochs,
            genotype=supernet.genotype(),
            strengths=tuple(supernet.strengths()),
            train_loss=loss,
            val_acc=evaluate(supernet, task, task.val)[1],
            seconds=seconds,
        )
        self.epochs.append(epoch)
        return tuple(self.epochs)

    def state(self) -> Mapping[str, Any]:
        records = [
            {**vars(e), "genotype": list(e.genotype), "strengths": [torch.from_numpy(s) for s in e.strengths]}
            for e in self.epochs
        ]
        return {"search": self.loop.state(), "epochs": records}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        self.loop.restore(step, state["search"])
        self.epochs = [
            Epoch(
                **{
                    **record,
                    "genotype": tuple(record["genotype"]),
                    "strengths": tuple(s.numpy() for s in record["strengths"]),
                }
            )
            for record in state["epochs"]
        ]

    def settings(self) -> Mapping[str, Any]:
        alphas = {k: v for k, v in dataclasses.asdict(self.loop.settings).items() if k != "weights"}
        alphas["alpha_betas"] = list(alphas["alpha_betas"])
        return {**self.loop.loop.settings(), "alphas": alphas}
