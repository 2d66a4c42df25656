"""A bound learned from failures: what needs as much memory as an architecture that ran out is not tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas.errors import TrialError
from nas.searchers import Searcher
from nas.searchers.searcher import Bounded
from nas.space.space import Space
from nas.training.memory_estimate import NEEDED, failed_for_memory
from nas.types import Genotype, Trial
from nas.user_code import user_errors


def too_large(
    trial: Trial, before: Sequence[Trial], needed_bytes: Callable[[Trial], int], memory: int
) -> TrialError | None:
    """Why a trial need not be trained: it needs at least as much memory as an earlier one that ran out.

    before: the trials that had ended when it was proposed, or of another study on this device.
    needed_bytes: the estimate for a trial, see `nas.training.memory_estimate.training_bytes`.
    memory: of the device.
    """
    failed = failed_for_memory(before, memory)
    if failed is None:
        return None
    try:
        with user_errors():
            needed = needed_bytes(trial)
    except TrialError:  # its trial will fail for this reason, and say so
        return None
    if needed < failed.metrics[NEEDED]:
        return None
    return TrialError(
        "oom",
        f"learned: it needs at least {needed / 2**20:,.0f} MiB to train, no less than trial {failed.number}, "
        f"which ran out of memory at {failed.metrics[NEEDED] / 2**20:,.0f} MiB",
    )


@dataclass(frozen=True)
class Fitting:
    """Asks another searcher again while its proposal needs as much as a trial that ran out of memory.

    needed_bytes: the estimate for an architecture at the fidelity where new ones begin.
    """

    searcher: Searcher
    needed_bytes: Callable[[Genotype], int]
    memory: int

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """The first proposal that fits, as `Bounded` finds it; simply the first as long as nothing failed."""
        failed = failed_for_memory(history, self.memory)
        if failed is None:
            return self.searcher.ask(space, history, rng)
        limit = failed.metrics[NEEDED]
        return Bounded(self.searcher, lambda genotype: self._fits(genotype, limit)).ask(space, history, rng)

    def _fits(self, genotype: Genotype, limit: float) -> bool:
        try:
            with user_errors():
                return self.needed_bytes(genotype) < limit
        except TrialError:  # its trial will fail for this reason, and say so
            return True
