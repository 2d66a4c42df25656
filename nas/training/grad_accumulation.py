"""The gradients of one batch from several passes, each over a part of it, to need less memory at once."""

from __future__ import annotations

import torch
from torch import Tensor

from nas.training.batches import Batch
from nas.training.checks import check_depends
from nas.training.criterion import Targets
from nas.training.loop import Gradients, Loop


def in_parts(passes: int) -> Gradients:
    """A training step in so many passes forward and backward: the same mean loss and its gradient.

    Not the same: batch-norm normalises each part by its own statistics, and its running ones move once for
    each part; what a network draws at random (paths to drop, dropout) is drawn in another order.

    passes: at most as many as there are images.
    """

    def gradients(loop: Loop, batch: Batch) -> Tensor:
        loop.team.apart(loop.seed_of_step)
        x, targets = batch
        total = torch.zeros((), device=x.device)
        for rows in torch.arange(len(x)).tensor_split(passes):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            loss = loop.loss((x[part], _of(targets, part)))
            check_depends(loss, loop.step)
            share = len(rows) / len(x)
            (share * loss).backward()  # type: ignore[no-untyped-call]
            total += share * loss.detach()
        return loop.combined(total)

    return gradients


def _of(targets: Targets, part: slice) -> Targets:
    labels, mixed = targets
    if mixed is None:
        return labels[part], None
    partners, share = mixed
    return labels[part], (partners[part], share)
