"""The architecture that a supernet's alphas choose, with few identities where guards ask for it."""

from __future__ import annotations

from collections.abc import Sequence

from nas.oneshot.guards import Guards
from nas.oneshot.identities import capped, keeps_cap
from nas.oneshot.paths import accuracies
from nas.oneshot.supernet import Supernet
from nas.task import Task
from nas.types import Genotype


def by_alphas(
    supernet: Supernet,
    task: Task,
    guards: Guards | None,
    *,
    healthy: Genotype = (),
    seed: int,
    images: int = 1024,
) -> Genotype:
    """What the alphas prefer, if it has not too many identities.

    Else, by accuracy on the shared weights, what they preferred when they were `healthy` (if known), or what
    they prefer now with the best operations in place of identities.

    images: how many pass at the same time, see `nas.oneshot.paths.scores`.
    """
    space, strengths = supernet.space, supernet.strengths()
    now = space.nearest(strengths)
    if guards is None or keeps_cap(space, now, guards.skip_cap):
        return now

    def judge(genotypes: Sequence[Genotype]) -> list[float]:
        return accuracies(supernet, genotypes, task, calibration=images // 2, seed=seed, images=images)

    choices = [capped(space, strengths, guards.skip_cap, judge), *([healthy] if healthy else [])]
    worth = judge(choices)
    return choices[worth.index(max(worth))]
