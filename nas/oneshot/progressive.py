"""Between two stages: options drop out, and a supernet's weights move into one of another form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nas.data.task import Task
from nas.errors import ConfigError, SpaceError
from nas.oneshot.methods import Method
from nas.oneshot.stages import Stage
from nas.oneshot.supernet import Supernet, in_training, kept
from nas.space.loading import load
from nas.space.mixed_op import MixedOp
from nas.space.ops import Zero
from nas.space.space import Space


def supernet_of(space: Space, method: Method, stage: Stage) -> Supernet:
    """A fresh supernet as a stage has it."""
    return Supernet(
        deepened(space, stage.depth),
        relaxation=method.relaxation,
        parts=stage.parts,
        edge_norm=method.edge_norm,
    )


def shrink(supernet: Supernet, stage: Stage) -> list[str]:
    """Keeps the strongest options of every decision, as many as the stage has; says how many dropped out."""
    strengths, before = supernet.strengths(), supernet.alive
    alive = []
    for row, options in zip(strengths, before, strict=True):
        count = min(len(options), stage.options(len(row)))
        alive.append(sorted(sorted(options, key=lambda o, row=row: -row[o])[:count]))  # type: ignore[misc]
    supernet.keep(alive)
    dropped = sum(map(len, before)) - sum(map(len, alive))
    return [f"{dropped} options drop out, {sum(map(len, alive))} are left"] if dropped else []


def record_fisher(supernet: Supernet, task: Task, *, batch: int = 256) -> None:
    """Sets the alphas to minus the logarithm of each option's Fisher term: the best options have the least.

    IS-DARTS (He et al., AAAI 2024), as in its code: the mean of `3 (o - μ)² / σ⁶` over one pass of the
    training images, with μ and σ over the channels of the option's output o, averaged over the places of a
    decision. Where σ is 0 the term is infinite. Batch-norm takes each batch's statistics. Deviation: images
    are not augmented, so that no chance decides.
    """
    totals: dict[tuple[str, int], list[Tensor]] = {}
    handles = [_watch(mixed, totals) for mixed in supernet.mixed()]
    with kept(supernet.network.buffers()), in_training(supernet), torch.no_grad():
        mixture = supernet.mixture(supernet.expected(), whole=True)
        for x in torch.split(task.train.x, batch):
            if len(x) > 1:
                supernet.mix(task.normalise(x), mixture)
    for handle in (h for own in handles for h in own):
        handle.remove()
    rows = []
    for decision in supernet.space.decisions:
        terms = [totals.get((decision.name, o)) for o in range(len(decision.options))]
        means = [torch.stack(t).mean() if t else torch.tensor(torch.inf) for t in terms]
        rows.append(torch.stack([-m.cpu().clamp(1e-30, 1e30).log() for m in means]))
    with torch.no_grad():
        for alphas, found in zip(supernet.alphas, supernet.grouped(rows), strict=True):
            alphas.copy_(found)


def _watch(
    mixed: MixedOp, totals: dict[tuple[str, int], list[Tensor]]
) -> list[torch.utils.hooks.RemovableHandle]:
    def hook(option: int) -> object:
        def add(_: nn.Module, __: object, output: Tensor) -> None:
            centred = output - output.mean(1, keepdim=True)
            term = 3 * centred.square() / output.std(1, keepdim=True).pow(6)
            totals.setdefault((mixed.decision, option), []).append(term.nan_to_num(torch.inf).mean())

        return add

    return [
        op.register_forward_hook(hook(option))  # type: ignore[arg-type]
        for option, op in enumerate(mixed.ops)
        if option in mixed.alive and not isinstance(op, Zero)
    ]


def inherit(new: Supernet, old: Supernet) -> None:
    """Fills a supernet that computes on more channels with the weights and alphas of one that did on fewer.

    New channels are copies of old ones, in turn (Net2Net, Chen et al., ICLR 2016, as in DrNAS; whose code
    draws them and keeps the momentum, which starts anew here). The normalisation behind takes out the scale.
    """
    known, wanted = old.network.state_dict(), new.network.state_dict()
    new.network.load_state_dict(
        {name: _stretched(known[name], value.shape) for name, value in wanted.items()}
    )
    with torch.no_grad():
        for ours, theirs in zip(new.architecture(), old.architecture(), strict=True):
            ours.copy_(theirs)
    new.keep(old.alive)


def _stretched(value: Tensor, shape: Sequence[int]) -> Tensor:
    for dim, size in enumerate(shape):
        if value.shape[dim] != size:
            value = value.index_select(dim, torch.arange(size, device=value.device) % value.shape[dim])
    return value


def deepened(space: Space, depth: float) -> Space:
    """The space with `depth` times as many cells.

    Raises:
        ConfigError: when it has no setting for that.
    """
    if depth == 1:
        return space
    cells = space.settings.get("cells")
    if not space.origin or type(cells) is not int:
        raise ConfigError(
            f"space {space.name!r} has no setting `cells` (a whole number) for a later stage to deepen; load "
            "it by name or as FILE.py:FUNCTION with such a parameter, or choose a method whose depth stays"
        )
    deeper = load(space.origin, {**space.settings, "cells": max(1, round(cells * depth))})
    if deeper.decisions != space.decisions:
        raise SpaceError(
            f"space {space.name!r} has other decisions at another depth; only its size may change"
        )
    return deeper
