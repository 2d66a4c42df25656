"""What groups of operations make of a map: all operations of a group in one call each layer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from nas.space.batching import Stack, normalise
from nas.training.batched.execution_plan import Group


def outcome(
    group: Group, x: Tensor, weights: Tensor | None, known: dict[Hashable, Tensor]
) -> tuple[Stack, Tensor | None]:
    """What a group makes of a map, and the weights that it has not been multiplied by.

    known: what layers without weights have made of this map so far, by the keys of all of them.
    """
    if not group.rules:
        y: Tensor = group.branches[0].op(x)
        return Stack(y, 1, shared=False), weights
    stack = Stack(x, len(group.branches), shared=True)
    pure: tuple[Hashable, ...] = ()
    for depth, (rule, layers) in enumerate(zip(group.rules, group.layers, strict=True)):
        if rule.pure and len(pure) == depth:
            pure = (*pure, rule.key)
            if pure not in known:
                known[pure] = rule.run(layers, stack).x
            stack = Stack(known[pure], stack.groups, shared=True)
        elif depth == len(group.rules) - 1 and rule.run is normalise and not stack.shared:
            return normalise(layers, stack, weights), None
        else:
            stack = rule.run(layers, stack)
    return stack, weights


def scaled(stack: Stack, weights: Tensor | None) -> Tensor:
    """`[B, G * C, H, W]` with each operation multiplied by its weight."""
    if weights is None:
        return stack.x
    channels = stack.x.shape[1] // stack.groups
    each = weights.to(stack.x.dtype).unsqueeze(1).expand(-1, channels).reshape(1, -1, 1, 1)
    return stack.x * each


def mixed(terms: Sequence[tuple[Tensor, Tensor | None]], edges: int) -> Sequence[Tensor]:
    """For each edge the sum of maps that all edges see, weighed as each does: one product of matrices."""
    if all(weights is None for _, weights in terms):
        total = terms[0][0] if len(terms) == 1 else torch.stack([x for x, _ in terms]).sum(0)
        return [total] * edges
    first = terms[0][0]
    rows = [weights if weights is not None else first.new_ones(edges) for _, weights in terms]
    if len(terms) == edges == 1:
        return [rows[0].to(first.dtype) * first]
    maps = torch.stack([x.permute(0, 2, 3, 1) for x, _ in terms])
    product = torch.stack(rows).to(first.dtype).T @ maps.flatten(1)
    return [x.permute(0, 3, 1, 2) for x in product.view(edges, *maps.shape[1:]).unbind()]
