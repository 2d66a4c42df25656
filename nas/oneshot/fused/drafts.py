"""What of a cell the kernels run, and in which slots, before any tensor is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nas.oneshot.fused.families import Family, families_of
from nas.oneshot.fused.groups import Group
from nas.oneshot.fused.stages import Chain, Pool, Same, Shape, shape_after

Edges = Sequence[tuple[int, int, object]]
"""(src, dst, operation) of all edges of a cell."""


def fitting(groups: list[list[Group]], edges: Edges, shapes: Sequence[Shape]) -> list[list[Group]]:
    """The groups of each node; without a form, where the shape of what they read or make is not sure to fit.

    shapes: of the maps of the inputs. That of another node is known where the kernels bring something there.
    """
    known, wanted = dict(enumerate(shapes)), None
    found: list[list[Group]] = []
    for src, own in enumerate(groups):
        found.append([])
        for group in own:
            after = shape_made(group, known.get(src))
            if after is None or after != (wanted or after):
                found[-1].append(replace(group, form=None))
                continue
            found[-1].append(group)
            wanted = after
            known |= {edges[branch.edge][1]: after for branch in group.branches}
    return found


def shape_made(group: Group, before: Shape | None) -> Shape | None:
    """Of what a group makes of a map; None where that, or the shape of the map, is not known."""
    if before is None or group.form is None:
        return None
    return shape_after(group.form, group.first, before)


@dataclass(frozen=True, eq=False)
class Draft:
    """A level before its tensors are made.

    sources: the nodes whose maps it reads. groups: all that leave them.
    spans: [families][stages] as in `Line`. slots: all of each branch, by its identity; what it brings is in
    the last one. count: slots in all.
    """

    sources: tuple[int, ...]
    groups: Sequence[Group]
    families: list[Family]
    pools: list[Group]
    same: list[Group]
    first: int
    spans: list[tuple[tuple[int, int] | None, ...]]
    slots: dict[int, list[int]]
    count: int

    @classmethod
    def of(cls, sources: tuple[int, ...], groups: Sequence[Group], first: int) -> Draft:
        """groups: in turns, where the sources are several. first: the next free slot."""
        chains, pools, same = _sorted(groups)
        families, at = families_of(chains), 0
        spans: list[tuple[tuple[int, int] | None, ...]] = []
        slots: dict[int, list[int]] = {}
        for family in families:
            own: list[tuple[int, int] | None] = []
            for stage, count in enumerate(family.counts):
                if family.apart and stage + 1 < len(family.counts):
                    own.append(None)
                    continue
                own.append((at, at + count))
                for member, branch in enumerate(family.branches[:count]):
                    slots.setdefault(id(branch), []).append(first + at + member)
                at += count
            spans.append(tuple(own))
        for group in pools:
            slots |= {id(branch): [first + at] for branch in group.branches}  # all of a pool share one
            at += 1
        return cls(sources, groups, families, pools, same, first, spans, slots, at)


def drafts_of(leaving: Sequence[Sequence[Group]], inputs: int, *, alike: bool) -> list[Draft]:
    """Of what leaves each node; all inputs have one, where the same leaves each and they are alike.

    That is then the first of as many, of which the others have nothing.
    """
    own = [*leaving]
    joint = _in_turns(own[:inputs]) if alike and inputs > 1 else None
    if joint is not None:
        own[:inputs] = [joint, *[[] for _ in range(inputs - 1)]]
    found: list[Draft] = []
    for src, groups in enumerate(own):
        sources = (src,) if joint is None or src > 0 else tuple(range(inputs))
        found.append(Draft.of(sources, groups, found[-1].first + found[-1].count if found else 0))
    return found


def _in_turns(leaving: Sequence[Sequence[Group]]) -> list[Group] | None:
    """What leaves several nodes, so that it can be one level; None where it is not the same of each.

    Branches of convolutions and identities take turns in one group, pools one after the other.
    """
    kinds = [[(tuple(rule.key for rule in g.rules), g.form, len(g.branches)) for g in own] for own in leaving]
    if any(own != kinds[0] for own in kinds):
        return None
    found: list[Group] = []
    for kin in zip(*leaving, strict=True):
        found += kin if isinstance(kin[0].form, Pool) else [_merged(kin)]
    return found


def _merged(groups: Sequence[Group]) -> Group:
    """Groups of equal size in one, their branches in turns."""
    branches = tuple(branch for turn in zip(*(g.branches for g in groups), strict=True) for branch in turn)
    layers = [
        tuple(layer for turn in zip(*own, strict=True) for layer in turn)
        for own in zip(*(g.layers for g in groups), strict=True)
    ]
    return replace(groups[0], branches=branches, layers=tuple(layers))


def _sorted(groups: Sequence[Group]) -> tuple[list[Group], list[Group], list[Group]]:
    """Chains, pools with those of maxima first, identities."""
    pools = [group for group in groups if isinstance(group.form, Pool)]
    pools.sort(key=lambda group: isinstance(group.form, Pool) and not group.form.largest)
    chains = [group for group in groups if isinstance(group.form, Chain)]
    return chains, pools, [group for group in groups if isinstance(group.form, Same)]
