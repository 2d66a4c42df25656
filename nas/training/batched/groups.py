"""Operations of one kind on edges that leave the same node: what runs as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from nas.space.batching import Rule

Layers = tuple[tuple[nn.Module, Rule], ...]


@dataclass(frozen=True)
class Branch:
    """One operation on one edge.

    edge: its position among the edges of the cell. weight: where its weight is among all rows of the mixture,
      one after the other; None where it has none.
    """

    edge: int
    op: nn.Module
    weight: int | None


@dataclass(frozen=True)
class Group:
    """Branches that run as one, all on the same map.

    rules: [layers]; none where the operations have no rule, so that there is one branch that runs by itself.
    layers: [layers][G]. weighed: whether any has a weight. number: its position in the cell.
    """

    branches: tuple[Branch, ...]
    rules: tuple[Rule, ...]
    layers: tuple[tuple[nn.Module, ...], ...]
    weighed: bool
    number: int = 0

    def split(self, size: int) -> Iterator[Group]:
        """The same in groups of at most so many branches; whole, where all of them make the same map."""
        if self.rules and all(rule.shares for rule in self.rules):
            yield self
            return
        for start in range(0, len(self.branches), size):
            part = slice(start, start + size)
            yield replace(
                self, branches=self.branches[part], layers=tuple(layer[part] for layer in self.layers)
            )
