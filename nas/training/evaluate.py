"""What a trained network says of images, in evaluation mode: loss, accuracy, predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import devices
from nas.data.task import Split, Task
from nas.errors import DataError, TrialError
from nas.training.criterion import Output
from nas.training.precision import precision, to_layout
from nas.user_code import memory_errors

FORWARD = 0.4
"""Of the time that a training step takes, what as many images take in evaluation."""


def evaluate(network: nn.Module, task: Task, split: Split, *, batch: int = 512) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in [0, 1] on `split`, in evaluation mode, on its device.

    batch: images at once; halved where memory runs out.
    """
    if not len(split):
        raise DataError("evaluate: the split has no images")
    loss, hits = torch.zeros((), device=split.x.device), torch.zeros((), device=split.x.device)
    with evaluating(network), torch.no_grad():
        for logits, y in _in_portions(partial(_logits, network, task), split, batch):
            loss += F.cross_entropy(logits, y, reduction="sum")
            hits += (logits.argmax(1) == y).sum()
        return loss.item() / len(split), hits.item() / len(split)


def predictions(network: nn.Module, task: Task, split: Split, *, batch: int = 512) -> Tensor:
    """The class number `[N]` that `network` gives each image of `split`, in evaluation mode."""
    with evaluating(network), torch.no_grad():
        portions = _in_portions(partial(_logits, network, task), split, batch)
        return torch.cat([logits.argmax(1) for logits, _ in portions])


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


def _in_portions(
    logits_of: Callable[[Tensor], Tensor], split: Split, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, portion by portion; the portions halve where memory runs out."""
    at = 0
    while at < len(split):
        x, y = split.x[at : at + batch], split.y[at : at + batch]
        try:
            with memory_errors(f"evaluating at batch {len(x)}"):
                logits = logits_of(x)
        except TrialError as error:
            if error.reason != "oom" or len(x) == 1:
                raise
            batch = len(x) // 2
        else:
            yield logits, y
            at += len(x)
            continue
        devices.release()  # outside of the handler: what failed is kept alive by its traceback


def _logits(network: nn.Module, task: Task, x: Tensor) -> Tensor:
    with precision(x.device):
        output: Output = network(to_layout(task.normalise(x)))
    return (output[0] if isinstance(output, tuple) else output).float()
