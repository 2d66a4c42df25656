"""A search in stages: options drop out between them, and the supernet may change its form.

A `StageSchedule` divides a search; `shrink`, `record_fisher`, `inherit` and `deepened` do what lies between
two stages.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nas.data.task import Task
from nas.errors import ConfigError, SpaceError
from nas.oneshot.supernet import Supernet, in_training, preserving
from nas.space.choosers import Zero
from nas.space.loading import load
from nas.space.space import Space


@dataclass(frozen=True)
class SearchStage:
    """One part of a search.

    epochs: how long it is.
    keep: share of a decision's options that are in the race, rounded, at least one.
    parts: the channels of mixed operations are divided into so many parts, one of which is computed on.
    depth: the number of cells, as a multiple of the space's.
    skip_dropout: of identities, see `fading`.
    """

    epochs: int
    keep: float = 1.0
    parts: int = 1
    depth: float = 1.0
    skip_dropout: float = 0.0

    def options(self, count: int) -> int:
        """How many of `count` options are in the race."""
        return max(1, round(self.keep * count))


@dataclass(frozen=True)
class StageSchedule(ABC):
    """Divides a search into stages."""

    by: ClassVar[Literal["alphas", "fisher"]] = "alphas"
    """What decides which options drop out between two stages: the alphas, or Fisher information."""

    @property
    def fresh(self) -> bool:
        """Whether every stage starts with new weights, alphas and schedules, which then end with it."""
        return False

    @abstractmethod
    def stages(self, epochs: int, options: int) -> list[SearchStage]:
        """The stages of a search of so many epochs over decisions with at most so many options."""


@dataclass(frozen=True)
class SingleStage(StageSchedule):
    """One stage. parts: see `SearchStage`."""

    parts: int = 1

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise ConfigError(f"stages: parts is {self.parts}, but must be at least 1")

    def stages(self, epochs: int, options: int) -> list[SearchStage]:  # noqa: ARG002 - one signature for all
        """The whole search."""
        return [SearchStage(epochs, parts=self.parts)]


@dataclass(frozen=True)
class Progressive(StageSchedule):
    """Equally long stages with fewer options each.

    keep, parts, depth, skip_dropout: for each stage, see `SearchStage`; the last three may be left out.
    anew: see `StageSchedule.fresh`. P-DARTS (Chen et al., ICCV 2019) starts its stages anew and deepens the
      network, DrNAS (Chen et al., ICLR 2021) goes on and computes on more channels.
    """

    keep: tuple[float, ...]
    parts: tuple[int, ...] = ()
    depth: tuple[float, ...] = ()
    skip_dropout: tuple[float, ...] = ()
    anew: bool = False

    def __post_init__(self) -> None:
        if not self.keep or any(b > a for a, b in pairwise(self.keep)) or not 0 < self.keep[-1] <= 1:
            raise ConfigError(f"stages: keep is {self.keep}, but must be shares in (0, 1] that do not grow")
        for name, wanted, holds in (
            ("parts", "at least 1", lambda entry: entry >= 1),
            ("depth", "finite and above 0", lambda entry: 0 < entry < math.inf),
            ("skip_dropout", "in [0, 1)", lambda entry: 0 <= entry < 1),
        ):
            entries = getattr(self, name)
            if len(entries) not in (0, len(self.keep)) or not all(map(holds, entries)):
                raise ConfigError(
                    f"stages: {name} is {entries}, but must be {wanted}, for none or for each of the "
                    f"{len(self.keep)} stages"
                )
        if not self.anew and any(share != 1 for share in self.depth):
            raise ConfigError("stages: the depth can change only where stages start anew; set anew")

    @property
    def fresh(self) -> bool:
        """As `anew`."""
        return self.anew

    def stages(self, epochs: int, options: int) -> list[SearchStage]:  # noqa: ARG002 - one signature for all
        """As many stages as `keep` has entries; with fewer epochs than that, the first ones are left out."""
        count, rows = min(len(self.keep), epochs), len(self.keep)
        ends = [round(epochs * i / count) for i in range(count + 1)]
        parts, depth = self.parts or (1,) * rows, self.depth or (1.0,) * rows
        settings = [*zip(self.keep, parts, depth, self.skip_dropout or (0.0,) * rows, strict=True)]
        lengths = (end - begin for begin, end in pairwise(ends))
        return [SearchStage(length, *row) for length, row in zip(lengths, settings[-count:], strict=True)]


@dataclass(frozen=True)
class PruneOneByOne(StageSchedule):
    """Near the end of the search one option after the other drops out, until one is left.

    Several drop out together where there are more options than epochs.

    every: share of the search between two drops, at least one epoch; the last one is an epoch before the end.
    IS-DARTS (He et al., AAAI 2024): with 5 options and 30 epochs, after epochs 23, 25, 27 and 29. Deviation:
    in the DARTS space the code drops the worst operations of all edges into a node together.
    """

    every: float = 1 / 15

    by: ClassVar[Literal["alphas", "fisher"]] = "fisher"

    def __post_init__(self) -> None:
        if not 0 <= self.every <= 1:
            raise ConfigError(f"stages: every is {self.every}, but must be a share in [0, 1]")

    def stages(self, epochs: int, options: int) -> list[SearchStage]:
        """One stage for each number of options."""
        drops = min(options, epochs) - 1
        if drops < 1:
            return [SearchStage(epochs)]
        gap = min(max(1, round(self.every * epochs)), (epochs - 1) // drops)
        lengths = [epochs - 1 - gap * (drops - 1), *[gap] * (drops - 1), 1]
        left = (options - round((options - 1) * i / drops) for i in range(drops + 1))
        return [
            SearchStage(length, keep=count / options) for length, count in zip(lengths, left, strict=True)
        ]


def fading(at: int, rest: int, epochs: int) -> float:
    """What is left, in [0, 1], of the dropout of identities in epoch `at` of a stage, counted from 0.

    As in the code of P-DARTS: it falls linearly in the `rest` epochs in which the alphas do not move; then it
    begins anew and falls to 1/e in a fifth of the stage (there in 5 of 25 epochs).
    """
    return (epochs - 1 - at) / epochs if at < rest else math.exp(-5 * (at - rest) / epochs)


# -- between two stages -----------------------------------------------------------------------------------


def shrink(supernet: Supernet, stage: SearchStage) -> list[str]:
    """Keeps the strongest options of every decision, as many as the stage has; says how many dropped out."""
    strengths, before = supernet.strengths(), supernet.alive
    alive = []
    for row, options in zip(strengths, before, strict=True):
        strongest = sorted(options, key=lambda o, row=row: -row[o])  # type: ignore[misc]
        alive.append(strongest[: stage.options(len(row))])
    supernet.keep(alive)
    left = sum(map(len, alive))
    dropped = sum(map(len, before)) - left
    return [f"{dropped} options drop out, {left} are left"] if dropped else []


def record_fisher(supernet: Supernet, task: Task, *, batch: int = 256) -> None:
    """Sets the alphas to minus the logarithm of each option's Fisher term: the best options have the least.

    IS-DARTS (He et al., AAAI 2024), as in its code: the mean of `3 (o - μ)² / σ⁶` over one pass of the
    training images, with μ and σ over the channels of the option's output o, averaged over the places of a
    decision. Where σ is 0 the term is infinite. Batch-norm takes each batch's statistics. Deviation: images
    are not augmented, so that no chance decides.
    """
    terms: dict[tuple[str, int], list[Tensor]] = {}
    handles: list[RemovableHandle] = []
    for mixed in supernet.mixed_ops:
        for option, op in enumerate(mixed.ops):
            if option in mixed.alive and not isinstance(op, Zero):
                own = terms.setdefault((mixed.decision, option), [])
                handles.append(op.register_forward_hook(partial(_note_fisher_term, own)))
    with preserving(supernet.network.buffers()), in_training(supernet), torch.no_grad():
        mixture = supernet.expected_mixture()
        for x in torch.split(task.train.x, batch):
            if len(x) > 1:
                supernet.mix(task.normalise(x), mixture)
    for handle in handles:
        handle.remove()
    rows = []
    for decision in supernet.space.decisions:
        found = [terms.get((decision.name, o)) for o in range(len(decision.options))]
        means = [torch.stack(own).mean() if own else torch.tensor(torch.inf) for own in found]
        rows.append(torch.stack([-mean.cpu().clamp(1e-30, 1e30).log() for mean in means]))
    supernet.set_alphas(rows)


def _note_fisher_term(terms: list[Tensor], _: nn.Module, __: object, output: Tensor) -> None:
    """A forward hook."""
    centred = output - output.mean(1, keepdim=True)
    term = 3 * centred.square() / output.std(1, keepdim=True).pow(6)
    terms.append(term.nan_to_num(torch.inf).mean())


def inherit(new: Supernet, old: Supernet) -> None:
    """Fills a supernet that computes on more channels with the weights and alphas of one that did on fewer.

    New channels are copies of old ones, in turn (Net2Net, Chen et al., ICLR 2016, as in DrNAS; whose code
    draws them and keeps the momentum, which starts anew here). The normalisation behind takes out the scale.
    """
    known, wanted = old.network.state_dict(), new.network.state_dict()
    new.network.load_state_dict({name: _tiled(known[name], value.shape) for name, value in wanted.items()})
    with torch.no_grad():
        for ours, theirs in zip(new.architecture(), old.architecture(), strict=True):
            ours.copy_(theirs)
    new.keep(old.alive)


def _tiled(value: Tensor, shape: Sequence[int]) -> Tensor:
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
