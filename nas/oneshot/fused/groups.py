"""Operations of one kind on edges that leave the same node: what runs as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from nas.oneshot.fused.rules import Rule, pieces_of
from nas.oneshot.fused.stages import Form

Layers = tuple[tuple[nn.Module, Rule], ...]


@dataclass(frozen=True)
class Known:
    """How an operation can be run together with others of its kind.

    chain: its layers with their rules; None where it runs by itself. form: what the kernels take it for.
    """

    chain: Layers | None
    form: Form | None = None


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
    layers: [layers][G]. weighed: whether any has a weight. form: what the kernels take it for; None where
    they run none of it. number: its position in the cell, among those with or without a form.
    """

    branches: tuple[Branch, ...]
    rules: tuple[Rule, ...]
    layers: tuple[tuple[nn.Module, ...], ...]
    weighed: bool
    number: int = 0
    form: Form | None = None

    @property
    def first(self) -> list[nn.Module]:
        """The layers of the first operation."""
        return [layer[0] for layer in self.layers]

    @property
    def pieces(self) -> tuple[tuple[nn.Module, ...], ...]:
        """[pieces][G] What the kernels see of the layers."""
        return tuple(zip(*(pieces_of(own) for own in zip(*self.layers, strict=True)), strict=True))

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
