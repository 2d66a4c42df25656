"""Families: chains of operations on one map that go in step, as they differ in nothing but their kernels.

All of a family that have a stage do it in one launch for each convolution, whatever the sides and dilations
of their kernels are. Those with most stages come first, so each stage is one of the first so many members.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

from torch import nn

from nas.oneshot.fused.groups import Branch, Group
from nas.oneshot.fused.stages import Chain


@dataclass(frozen=True)
class Step:
    """One convolution of all that have it. stage: its number.

    halves: whether each is two, one after the other, which make some of the channels each.
    """

    stage: int
    depthwise: bool
    convolutions: tuple[nn.Conv2d, ...]
    halves: bool = False

    @property
    def kinds(self) -> tuple[tuple[int, int], ...]:
        """(side, dilation) of all kernels that there are, sorted."""
        return tuple(sorted({kernel_kind(conv) for conv in self.convolutions}))


@dataclass(frozen=True, eq=False)
class Family:
    """branches: the members. steps: of all stages, in order. norms: [stages] after the last step of each.

    apart: whether the maps between two stages are of another shape than those at the end.
    """

    branches: tuple[Branch, ...]
    steps: tuple[Step, ...]
    norms: tuple[tuple[nn.BatchNorm2d, ...], ...]
    apart: bool

    @property
    def counts(self) -> list[int]:
        """[stages] How many have each."""
        return [len(norms) for norms in self.norms]

    @property
    def affine(self) -> list[bool]:
        """[stages] Whether the batch-norms have weights and biases."""
        return [norms[0].affine for norms in self.norms]

    @property
    def convolutions(self) -> Iterator[nn.Conv2d]:
        """All of them, step by step."""
        return chain.from_iterable(step.convolutions for step in self.steps)


def kernel_kind(conv: nn.Conv2d) -> tuple[int, int]:
    """Side and dilation of its kernel."""
    return conv.kernel_size[0], conv.dilation[0]


def families_of(groups: Sequence[Group]) -> list[Family]:
    """Groups of chains on one map, in as few families as can be."""
    return [_family(kin, apart=_inner_differ(kin[0])) for kin in kin_of(groups)]


def kin_of(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of chains on one map by families; those with most stages come first."""
    found: list[tuple[tuple[Hashable, ...], list[Group]]] = []
    for group in sorted(groups, key=lambda group: -len(_form(group).stages)):
        key, apart = _key(group), _inner_differ(group)
        for theirs, kin in found:
            shorter = len(theirs) > len(key)
            if theirs[: len(key)] == key and not (shorter and (apart or _inner_differ(kin[0]))):
                kin.append(group)
                break
        else:
            found.append((key, [group]))
    return [kin for _, kin in found]


def _form(group: Group) -> Chain:
    return cast(Chain, group.form)


def _key(group: Group) -> tuple[Hashable, ...]:
    """What the stages of a chain must have in common with those of others: all but the kernels."""
    found, pieces = [], [piece[0] for piece in group.pieces]
    for stage in _form(group).stages:
        convs = [cast(nn.Conv2d, pieces[at]) for at in stage.convolutions]
        sizes = tuple((conv.in_channels, conv.out_channels, conv.stride) for conv in convs)
        norm = cast(nn.BatchNorm2d, pieces[stage.norm])
        found.append((sizes, stage.other is None, norm.eps, norm.affine, convs[0].weight.dtype))
    return tuple(found)


def _inner_differ(group: Group) -> bool:
    """Whether maps between stages are of another shape than those after the last one."""
    stages, pieces = _form(group).stages, [piece[0] for piece in group.pieces]
    ends = {cast(nn.BatchNorm2d, pieces[stage.norm]).num_features for stage in stages}
    later = [cast(nn.Conv2d, pieces[at]) for stage in stages[1:] for at in stage.convolutions]
    return len(ends) > 1 or any(conv.stride[0] > 1 for conv in later)


def _family(groups: Sequence[Group], *, apart: bool) -> Family:
    steps, norms = [], []
    for number, stage in enumerate(_form(groups[0]).stages):
        members = [group for group in groups if number < len(_form(group).stages)]
        if stage.depthwise is not None:
            steps.append(Step(number, depthwise=True, convolutions=_depthwise(members, number)))
        convs = _dense(members, number)
        steps.append(Step(number, depthwise=False, convolutions=convs, halves=stage.other is not None))
        norms.append(
            tuple(cast(nn.BatchNorm2d, n) for g in members for n in g.pieces[_form(g).stages[number].norm])
        )
    branches = tuple(branch for group in groups for branch in group.branches)
    return Family(branches, tuple(steps), tuple(norms), apart)


def _depthwise(groups: Sequence[Group], number: int) -> tuple[nn.Conv2d, ...]:
    """The depthwise convolutions of a stage of all groups."""
    found = [conv for g in groups for conv in g.pieces[cast(int, _form(g).stages[number].depthwise)]]
    return cast(tuple[nn.Conv2d, ...], tuple(found))


def _dense(groups: Sequence[Group], number: int) -> tuple[nn.Conv2d, ...]:
    """The others, of which two that make some of the channels each follow one another."""
    found: list[nn.Module] = []
    for group in groups:
        stage = _form(group).stages[number]
        rows = [group.pieces[at] for at in (stage.dense, stage.other) if at is not None]
        found += chain.from_iterable(zip(*rows, strict=True))
    return cast(tuple[nn.Conv2d, ...], tuple(found))
