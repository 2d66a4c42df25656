"""The gradients of the paths of drawn architectures on the weights of a supernet."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from nas.oneshot.supernet import Supernet
from nas.training.batches import Batch
from nas.training.loop import Gradients, Loop
from nas.training.precision import precision
from nas.types import Genotype

Draw = Callable[[int], list[Genotype]]
"""The architectures of a step, of which there are equally many in each."""


def along_paths(supernet: Supernet, draw: Draw, *, distils: bool) -> Gradients:
    """Steps that compute the gradients of one path after the other, of which one is in memory at a time.

    The weights move by their mean. A path computes the chosen operations only; what is on no path has no
    gradient, and rests.

    distils: whether the first architecture of a step teaches the others.
    """

    def gradients(loop: Loop, batch: Batch) -> Tensor:
        x, targets = batch
        paths = draw(loop.step)
        loop.team.note(paths)
        loop.team.apart(loop.seed_of_step)
        losses: list[Tensor] = []
        teacher: Tensor | None = None
        for genotype in paths:
            with precision(loop.device, loop.recipe.precision):
                logits = supernet(x, genotype)
            if teacher is None:
                loss = loop.criterion(logits, targets)
            else:
                loss = F.cross_entropy(logits.float(), teacher)
            (loss / len(paths)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            if distils and teacher is None:
                teacher = logits.detach().float().softmax(-1)
        return loop.combined(sum(losses[1:], losses[0]) / len(paths))

    return gradients
