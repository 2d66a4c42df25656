"""Maps of several operations side by side, and what modules need to run together with others of a kind."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Stack:
    """The maps of G operations of one kind.

    x: [B, G * C, H, W], operation after operation; while all of them see the same map (`shared`),
      [B, C, H, W].
    """

    x: Tensor
    groups: int
    shared: bool

    def apart(self) -> Tensor:
        """`[B, G * C, H, W]`: where the map is shared, a copy for each operation."""
        if not self.shared or self.groups == 1:
            return self.x
        return side_by_side([self.x] * self.groups)

    def map(self, function: Callable[[Tensor], Tensor]) -> Stack:
        """The same function on every channel by itself."""
        return Stack(function(self.x), self.groups, self.shared)


class Batched:
    """A module that says how several of its kind run together: the rule of a primitive.

    Modules run together where their keys are equal; one whose key is None runs by itself.

    batch_shares: whether, while training, they make the same of the same map.
    """

    batch_shares = False

    def batch_key(self) -> Hashable:
        """All that modules must have in common."""
        raise NotImplementedError

    @classmethod
    def batch(cls, modules: Sequence[nn.Module], stack: Stack) -> Stack:
        """What each of G modules makes of its maps; a batch-norm among them may be frozen by itself."""
        raise NotImplementedError


def side_by_side(maps: Sequence[Tensor]) -> Tensor:
    """Maps `[B, C, H, W]` in one `[B, G * C, H, W]`, channels last in memory."""
    return torch.cat([x.permute(0, 2, 3, 1) for x in maps], dim=-1).permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> Tensor:
    """The same map with its channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Weights in one tensor, along the first dimension."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
