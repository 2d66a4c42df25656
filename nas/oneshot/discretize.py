"""The architecture that a supernet's alphas choose, with few identities where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from nas.data.task import Task
from nas.oneshot.path_evaluation import accuracies
from nas.oneshot.skip_connections import capped, keeps_cap
from nas.oneshot.supernet import Supernet
from nas.types import Genotype


def by_alphas(
    supernet: Supernet,
    task: Task,
    cap: int | None,
    *,
    judged: bool,
    healthy: Genotype = (),
    seed: int,
    images: int = 1024,
) -> Genotype:
    """What the alphas prefer, if it has at most `cap` identities in a cell; any number where that is None.

    Else what they prefer with other operations in place of identities: those that the alphas prefer, or, if
    `judged`, the best ones by accuracy on the shared weights. Then it is also compared with what they
    preferred when they were `healthy`, if that is known.

    images: how many pass at the same time, see `nas.oneshot.path_evaluation.scores`.
    """
    space, strengths = supernet.space, supernet.strengths()
    now = space.nearest(strengths)
    if cap is None or keeps_cap(space, now, cap):
        return now
    if not judged:
        return capped(space, strengths, cap)

    def judge(genotypes: Sequence[Genotype]) -> list[float]:
        return accuracies(supernet, genotypes, task, calibration=images // 2, seed=seed, images=images)

    choices = [capped(space, strengths, cap, judge), *([healthy] if healthy else [])]
    worth = judge(choices)
    return choices[worth.index(max(worth))]
