"""What a trained network says of images, in evaluation mode: loss, accuracy, predictions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import devices
from nas.errors import DataError, TrialError
from nas.task import Split, Task
from nas.training.arithmetic import precision, to_layout
from nas.training.captured import Captured, Recorder
from nas.training.criterion import Output
from nas.user_code import memory_errors

FORWARD = 0.4
"""Of the time that a training step takes, what as many images take in evaluation."""
WORTH = 8
"""Portions from which on it pays to capture what computes them."""


def evaluate(network: nn.Module, task: Task, split: Split, *, batch: int = 512) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in [0, 1] on `split`, in evaluation mode, on its device.

    batch: images at once; halved where memory runs out.
    """
    return Evaluation(network, task, batch=batch).of(split)


def predictions(network: nn.Module, task: Task, split: Split, *, batch: int = 512) -> Tensor:
    """The class number `[N]` that `network` gives each image of `split`, in evaluation mode."""
    with evaluating(network), torch.no_grad():
        portions = _in_portions(partial(_logits, network, task), split, batch)
        return torch.cat([logits.argmax(1) for logits, _ in portions])


class Evaluation:
    """Evaluates one network, perhaps again and again while it is trained.

    batch: images at once; halved where memory runs out.
    record: what captures steps, see `nas.training.captured`. With it, many portions of the images, of one
      evaluation and of all later ones, are replays of one CUDA graph; it shall be that of the training, as
      graphs of one recorder share their memory.
    form: what the network reads of Python and may change from one evaluation to the next.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        *,
        batch: int = 512,
        record: Recorder | None = None,
        form: Callable[[], Hashable] = lambda: (),
    ) -> None:
        self.network, self.task, self.batch, self._form = network, task, batch, form
        self._plain = partial(_logits, network, task)
        self._replayed = Replayed(self._plain, record) if record is not None else None

    def of(self, split: Split) -> tuple[float, float]:
        """Mean cross-entropy in nats and accuracy in [0, 1] on `split`, in evaluation mode, on its device."""
        if not len(split):
            raise DataError("evaluate: the split has no images")
        logits_of = self._plain
        if self._replayed is not None and len(split) >= WORTH * self.batch:
            logits_of = partial(self._replayed, form=self._form())
        loss, hits = torch.zeros((), device=split.x.device), torch.zeros((), device=split.x.device)
        with evaluating(self.network), torch.no_grad():
            for logits, y in _in_portions(logits_of, split, self.batch):
                loss += F.cross_entropy(logits, y, reduction="sum")
                hits += (logits.argmax(1) == y).sum()
            return loss.item() / len(split), hits.item() / len(split)


class Replayed:
    """What a network in evaluation mode makes of portions of images, by a step that may be captured.

    compute: from images to something of each; that of an image must not depend on the others.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], record: Recorder | None) -> None:
        self._compute = compute
        self._x, self._found = torch.empty(0), torch.empty(0)
        otherwise = "an evaluation runs as it is, without a CUDA graph"
        self._captured = Captured(self._step, lambda: [self._found], record, otherwise=otherwise)

    def __call__(self, x: Tensor, form: Hashable = ()) -> Tensor:
        """Of images, which may be fewer than those before; to be used before the next call.

        form: what `compute` reads of Python and may have changed.
        """
        alike = (x.shape[1:], x.dtype, x.device) == (self._x.shape[1:], self._x.dtype, self._x.device)
        if not alike or len(x) > len(self._x):
            self._captured.forget()
            self._x = torch.empty_like(x)
        try:
            self._captured.run((form,), lambda: self._begin(x))
        except Exception:
            self._x = torch.empty(0)  # there may be memory for fewer
            raise
        return self._found[: len(x)]

    def forget(self) -> None:
        """Forgets what was captured."""
        self._captured.forget()

    def _begin(self, x: Tensor) -> None:
        self._x[: len(x)].copy_(x)

    def _step(self) -> None:
        found = self._compute(self._x)
        if found.shape == self._found.shape and found.device == self._found.device:
            self._found.copy_(found)
        else:
            self._found = found.clone()


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
