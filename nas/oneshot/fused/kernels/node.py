"""The sum in a node as one node of autograd, whose backward pass is one pass over its contributions.

What leads there gets the gradient of the node as it is: a batch-norm and a weight are passed only by
`leaving`, which so reads one gradient for all operations on all edges into the node. Not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nas.oneshot.fused.kernels import mixing_launch as launch
from nas.oneshot.fused.kernels.maps import Norm
from nas.oneshot.fused.kernels.mixing_launch import Mixing
from nas.oneshot.fused.kernels.slots import Leavings, Slots


def shares(weights: Tensor, slots: Slots, leavings: Leavings) -> tuple[Tensor, ...]:
    """A token for each computed node, by which the weights [K] of all contributions get their gradients.

    So these are made at once, when all nodes have left their sums.
    """
    return cast(tuple[Tensor, ...], _Shares.apply(weights, slots, leavings))  # type: ignore[no-untyped-call]


def total(
    node: int,
    slots: Slots,
    leavings: Leavings,
    weights: Tensor,
    *,
    share: Tensor,
    states: Sequence[Tensor],
    masks: Tensor | None,
    rest: Tensor | None,
    tokens: Sequence[Tensor],
) -> Tensor:
    """The map `[B, C, H, W]` of a computed node, channels last.

    weights: [K] of its contributions. share: its token from `shares`. states: [P, C] those that are
    contributions. masks: [edges, B] factors of images, or None. rest: [B, C, H, W] what the kernels do not
    know, masked already. tokens: of the edges.
    """
    task = _Task(node, slots, leavings, weights, states, masks)
    out = _Node.apply(share, rest, task, *tokens)  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


@dataclass(frozen=True)
class _Task:
    node: int
    slots: Slots
    leavings: Leavings
    weights: Tensor
    states: Sequence[Tensor]
    masks: Tensor | None


class _Shares(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - it has no type
        weights: Tensor,
        slots: Slots,
        leavings: Leavings,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weights, slots.raw, *slots.norm.tensors)
        ctx.leavings = leavings
        ctx.set_materialize_grads(False)
        return tuple(weights.new_empty(()) for _ in leavings.layout.sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        weights, raw, *norm = ctx.saved_tensors
        leavings = cast(Leavings, ctx.leavings)
        sums = leavings.returned(raw).sums
        for own, grad in zip(leavings.layout.sums, grads, strict=True):
            if grad is None:
                sums[own.start : own.stop].zero_()
        affine = leavings.layout.affine
        moved = _of_weights(sums, Norm(*norm), leavings.mixing(weights)) if affine else sums[:, 1].sum(1)
        return moved.to(weights), None, None


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - it has no type
        _: Tensor,
        rest: Tensor | None,
        task: _Task,
        *tokens: Tensor,
    ) -> Tensor:
        slots, masks, states, weights = task.slots, task.masks, task.states, task.weights
        channels, height, width = slots.layout.shape
        own = slots.layout.sums[task.node]
        out = launch.node(
            slots.raw,
            slots.norm,
            task.leavings.mixing(weights, own),
            states,
            masks=masks,
            rest=None if rest is None else _pixels(rest),
            images=slots.batch,
        )
        ctx.save_for_backward(weights, masks, slots.raw, *slots.norm.tensors, *states)
        ctx.node, ctx.leavings, ctx.tokens = task.node, task.leavings, len(tokens)
        return out.view(slots.batch, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        weights, masks, raw, mean, var, inv, scale, shift, *states = ctx.saved_tensors
        leavings, own = ctx.leavings, ctx.leavings.layout.sums[ctx.node]
        returned, (first, stop) = leavings.returned(raw), leavings.rows(ctx.node)
        pixels = grad.permute(0, 2, 3, 1)
        rows = returned.rows[first:stop].view(-1, *pixels.shape)
        if masks is None:
            # `leaving` has left it there, unless nothing leaves the node by the kernels.
            if pixels.data_ptr() != rows.data_ptr():
                rows.copy_(pixels)
        else:
            torch.mul(pixels, masks[first:stop, :, None, None, None], out=rows)
        sums, norm = returned.sums[own.start : own.stop], Norm(mean, var, inv, scale, shift)
        mixing = leavings.mixing(weights, own)
        tickets = leavings.layout.tickets
        launch.node_sums(raw, norm, mixing, states, rows=returned.rows, sums=sums, tickets=tickets)
        share = weights.new_empty(()) if ctx.needs_input_grad[0] else None
        batch, height, width, channels = pixels.shape
        # Any gradient will do for a token: `leaving` reads them all where they were left.
        passed = returned.rows[first].view(batch, height, width, channels)
        rest = grad if ctx.needs_input_grad[1] else None
        return share, rest, None, *[passed] * ctx.tokens


def _of_weights(sums: Tensor, norm: Norm, mixing: Mixing) -> Tensor:
    """Gradients [K] of the weights of contributions whose batch-norms have weights and biases of their own.

    sums: [K, 2, C] of the gradient of the node, and of its product with the normalised map.
    """
    slot, normed = mixing.table[:, 0].long(), mixing.table[:, 3:].ne(0)
    weight = torch.where(normed, norm.weight[slot], 1.0)
    bias = torch.where(normed, norm.bias[slot], 0.0)
    return (weight * sums[:, 1] + bias * sums[:, 0]).sum(1)


def _pixels(x: Tensor) -> Tensor:
    """[P, C] of a map `[B, C, H, W]`, dense, as the programs read it; it may be a part of another map."""
    return x.permute(0, 2, 3, 1).contiguous().view(-1, x.shape[1])
