"""A step of SGD in which some parameters rest, and only the device knows which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MOMENTUM = "momentum_buffer"


class Resting:
    """Lets parameters whose gradient is nothing but zeros rest, as those do that have none.

    So neither weight decay nor momentum moves operations that were not run, or led nowhere. It does not wait
    for the device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)

    @contextmanager
    def during(self, optimizer: torch.optim.SGD) -> Iterator[None]:
        """Runs a step of an optimizer, whose only state is a momentum (see `begin_momenta`)."""
        moving = [p for p in self._parameters if p.grad is not None]
        if not moving:
            yield
            return
        norms = torch._foreach_norm([p.grad for p in moving if p.grad is not None], torch.inf)
        values = [p.detach() for p in moving]
        momenta = [optimizer.state[p].get(MOMENTUM) for p in moving]
        kept = [*values, *(momentum for momentum in momenta if momentum is not None)]
        before = list(torch._foreach_add(kept, 0))
        yield
        moved = shares(torch.stack(norms).ne(0), values)
        # With a share of 0 or 1, an interpolation gives either end to the bit.
        torch._foreach_lerp_(before, kept, [*moved, *moved][: len(kept)])
        torch._foreach_copy_(kept, before)


def begin_momenta(optimizer: torch.optim.SGD) -> None:
    """Gives what has its first gradient a momentum of zeros; a fused step takes those of all or of none."""
    for group in optimizer.param_groups:
        for p in group["params"] if group["momentum"] else ():
            if p.grad is not None and optimizer.state[p].get(MOMENTUM) is None:
                optimizer.state[p][MOMENTUM] = torch.zeros_like(p)


def shares(moves: Tensor, like: list[Tensor]) -> list[Tensor]:
    """1 or 0 for every entry of some tensors, laid out as these are. moves: [tensors]."""
    sizes = [tensor.numel() for tensor in like]
    each = [share.expand(size) for share, size in zip(moves.to(like[0]).unbind(), sizes, strict=True)]
    parts = torch.split(torch.cat(each), sizes)
    return [p.as_strided(t.shape, t.stride(), p.storage_offset()) for p, t in zip(parts, like, strict=True)]
