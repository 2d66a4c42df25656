"""The problem of a task: what a network's outputs are, their loss, how well they do, and what they predict.

Whatever trains, compares or tells of networks asks it; only here is a task a classification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from nas.types import Objective


@dataclass(frozen=True)
class Problem:
    """What is learned from the targets of a task, and how well means what.

    The functions are those of a module, so that a problem can be sent to other processes.

    name: e.g. `classification`.
    metric: what networks are judged by; a trial has `val_METRIC`, the last network `test_METRIC`.
    words: the metric in words.
    loss: of outputs `[B, outputs]` in float32 and targets `[B]`, their mean, a scalar; that of classes takes
      `label_smoothing`, too.
    score: of outputs and targets, that of each example `[B]`; their mean is the metric.
    predict: of outputs, what they say of each example, `[B]`.
    soften: of outputs, what another network that learns from this one has as targets.
    guess: of targets `[N]`, the scores `[N]` of the best answer that is the same for all.
    outputs: numbers that a network gives for an example; 0 is one for each class of the task.
    maximize: whether more of the metric is better.
    is_share: whether the metric is a share of examples, in [0, 1].

    Example:
        INK = Problem("regression", "mse", "squared error", loss, error, value, value, spread, outputs=1,
                      maximize=False, is_share=False)
        nas.search("toy", dataclasses.replace(task, problem=INK))
    """

    name: str
    metric: str
    words: str
    loss: Callable[..., Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    soften: Callable[[Tensor], Tensor]
    guess: Callable[[Tensor], Tensor]
    outputs: int = 0
    maximize: bool = True
    is_share: bool = True

    @property
    def val(self) -> str:
        """The metric's name on validation examples, e.g. `val_acc`."""
        return f"val_{self.metric}"

    @property
    def test(self) -> str:
        """Its name on test examples."""
        return f"test_{self.metric}"

    @property
    def objective(self) -> Objective:
        """What a search is for unless it is told otherwise."""
        return Objective(self.val, self.maximize)

    def better(self, value: float) -> float:
        """A value of the metric, turned so that larger is better."""
        return value if self.maximize else -value

    def text(self, value: float) -> str:
        """A value of the metric for people: `.9876` of a share, else four digits."""
        return f"{value:.4f}" if self.is_share else f"{value:.4g}"


def _is_right(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.argmax(1) == classes


def _class_number(logits: Tensor) -> Tensor:
    return logits.argmax(1)


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def _commonest(classes: Tensor) -> Tensor:
    return classes == classes.bincount().argmax()


CLASSIFICATION = Problem(
    "classification", "acc", "accuracy", F.cross_entropy, _is_right, _class_number, _probabilities, _commonest
)
"""Targets are class numbers in 0..C-1, outputs logits; judged by the share of examples that are right.

The loss is cross-entropy in nats, of probabilities `[B, C]` as targets, too.
"""
