"""A step of SGD in which some parameters rest, and only the device knows which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Resting:
    """Lets parameters whose gradient is nothing but zeros rest, as those do that have none.

    So neither weight decay nor momentum moves operations that were not run, or led nowhere. It does not wait
    for the device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)

    @contextmanager
    def during(self, optimizer: torch.optim.SGD) -> Iterator[None]:
        """Runs a step of an optimizer, whose only state is a momentum."""
        moving = [p for p in self._parameters if p.grad is not None]
        if not moving:
            yield
            return
        norms = torch._foreach_norm([p.grad for p in moving if p.grad is not None], torch.inf)
        values = [p.detach() for p in moving]
        slots = [optimizer.state[p].get("momentum_buffer") for p in moving]
        # What a momentum begins with is the first gradient, as if it had been zero before.
        held = [torch.zeros_like(p) if slot is None else slot for p, slot in zip(values, slots, strict=True)]
        before = list(torch._foreach_add([*values, *held], 0))
        yield
        slots = [optimizer.state[p].get("momentum_buffer") for p in moving]
        after = [*values, *(slot for slot in slots if slot is not None)]
        moved = shares(torch.stack(norms).ne(0), values)
        # With a share of 0 or 1, an interpolation gives either end to the bit.
        torch._foreach_lerp_(before[: len(after)], after, [*moved, *moved][: len(after)])
        torch._foreach_copy_(after, before[: len(after)])


def shares(moves: Tensor, like: list[Tensor]) -> list[Tensor]:
    """1 or 0 for every entry of some tensors, laid out as these are. moves: [tensors]."""
    sizes = [tensor.numel() for tensor in like]
    each = [share.expand(size) for share, size in zip(moves.to(like[0]).unbind(), sizes, strict=True)]
    parts = torch.split(torch.cat(each), sizes)
    return [p.as_strided(t.shape, t.stride(), p.storage_offset()) for p, t in zip(parts, like, strict=True)]
