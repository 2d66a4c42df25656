"""What a network is worth in evaluation mode: its loss and its scores; statistics taken anew for it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas import devices
from nas.data.task import Split, Task
from nas.devices import evaluating
from nas.errors import DataError, TrialError
from nas.training.recipe import precision, to_layout
from nas.user_code import memory_errors

Output = Tensor | tuple[Tensor, Tensor | None]
"""Outputs `[B, outputs]`; a network in training mode may add those of its auxiliary head."""
Targets = tuple[Tensor, tuple[Tensor, Tensor] | None]
"""Targets `[B]` and, under mixup, those of the partners `[B]` with the share of the first."""
Batch = tuple[Tensor, Targets]
"""Images `[B, C, H, W]` and their targets."""
FORWARD = 0.4
"""Of the time that a training step takes, what as many images take in evaluation."""
STATISTICS_IMAGES = 1024
"""From which batch-norm statistics are taken anew, at most; they settle after a few batches."""
SHORT = 1000
"""Steps of a training after which moving averages have caught up with the weights."""


def evaluate(network: nn.Module, task: Task, split: Split, *, batch: int = 512) -> tuple[float, float]:
    """Mean loss and mean score of the task's problem on `split`, in evaluation mode, on its device.

    Of a classification, cross-entropy in nats and accuracy in [0, 1].

    batch: images at once; halved where memory runs out.
    """
    loss, scores = judged(network, task, split, batch=batch)
    return loss, scores.double().mean().item()


def judged(network: nn.Module, task: Task, split: Split, *, batch: int = 512) -> tuple[float, Tensor]:
    """Mean loss on `split`, and the score of each of its images, `[N]`; see `evaluate`."""
    if not len(split):
        raise DataError("evaluate: the split has no images")
    loss, scores = torch.zeros((), device=split.x.device), list[Tensor]()
    for outputs, y in _portions(network, task, split, batch):
        loss += len(y) * task.problem.loss(outputs, y)
        scores.append(task.problem.score(outputs, y))
    return loss.item() / len(split), torch.cat(scores)


def _portions(network: nn.Module, task: Task, split: Split, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and targets, portion by portion; the portions halve where memory runs out."""
    at = 0
    while at < len(split):
        x, y = split.x[at : at + batch], split.y[at : at + batch]
        try:
            with memory_errors(f"evaluating at batch {len(x)}"):
                outputs = _outputs(network, task.normalise(x))
        except TrialError as error:
            if error.reason != "oom" or len(x) == 1:
                raise
            batch = len(x) // 2
        else:
            yield outputs, y
            at += len(x)
            continue
        devices.release()  # outside of the handler: what failed is kept alive by its traceback


def _outputs(network: nn.Module, x: Tensor) -> Tensor:
    with evaluating(network), torch.no_grad(), precision(x.device):
        output: Output = network(to_layout(x))
    return (output[0] if isinstance(output, tuple) else output).float()


def reestimate(network: nn.Module, task: Task, split: Split, *, batch: int) -> None:
    """Sets the running statistics of all batch-norm layers to means over the first training images.

    Moving averages lag behind weights that change fast: after 33 steps a network was seen to classify 14 % by
    them and 86 % by these.

    batch: images at once, as in training, since variances depend on it.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    images = split.x[: max(1, STATISTICS_IMAGES // batch) * batch]
    with evaluating(network), torch.no_grad(), precision(split.x.device):
        for norm in norms:
            norm.train()
        for count, x in enumerate(torch.split(images, batch), 1):
            for norm in norms:
                norm.momentum = 1 / count  # the plain mean over batches
            network(to_layout(task.normalise(x)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
