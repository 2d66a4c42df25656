"""How the time of a job is divided among its phases, and what a training does in the time that is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nas.training.recipe import Recipe, compressed

RETRAIN, RERANK = 0.4, 0.15
"""Largest shares of a short budget."""
LEAST = 0.25
"""A search shortened to less than this share of what was planned is not also compared with random search."""
FINISH_S = 3.0
"""Set aside for writing the result."""
EXPORT_S, EXPORTED_S = 30.0, 600.0
"""Set aside for the bundle, where a budget is at least as long as the second; else there is none."""
TIGHT = 0.9
"""Share of the time left that a training is made to fit into; other work on the machine takes the rest."""


@dataclass(frozen=True)
class Needs:
    """Seconds that the phases of a job are estimated to take in full; 0 where there is no such phase.

    training_s: one training of the re-evaluation. finish_s: writing the result. test_s: testing the network.
    """

    search_s: float = 0.0
    baselines_s: float = 0.0
    rerank_s: float = 0.0
    retrain_s: float = 0.0
    training_s: float = 0.0
    finish_s: float = FINISH_S
    test_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Of all phases."""
        return self.work_s + self.test_s + self.finish_s

    @property
    def work_s(self) -> float:
        """Of all that a budget divides."""
        return self.search_s + self.baselines_s + self.rerank_s + self.retrain_s


@dataclass(frozen=True)
class Shares:
    """When the phases of a job have to be over, in seconds of its clock; None for one that is left out.

    The last training and the writing end with the budget.
    """

    search_s: float
    baselines_s: float | None
    rerank_s: float | None


def divide(needs: Needs, now_s: float, budget_s: float) -> Shares:
    """Divides what is left of a budget.

    Where all phases fit, each gets what it needs and its part of the rest. Else the last training gets at
    most `RETRAIN` of the time and the re-evaluation at most `RERANK`; it is left out where that is not
    enough for two trainings. Random search at equal cost gets as much as the search, and is left out where
    this would leave less than `LEAST` of the planned search, or there is no re-evaluation to compare them.
    """
    usable_s = max(0.0, budget_s - now_s - needs.test_s - needs.finish_s)
    work_s = needs.work_s
    if work_s <= usable_s:
        scale = usable_s / work_s if work_s else 0.0
        search, baselines, rerank = (
            scale * part for part in (needs.search_s, needs.baselines_s, needs.rerank_s)
        )
    else:
        retrain = min(needs.retrain_s, RETRAIN * usable_s)
        rerank = min(needs.rerank_s, RERANK * usable_s)
        if rerank < 2 * needs.training_s:
            rerank = 0.0
        rest = usable_s - retrain - rerank
        compares = needs.baselines_s > 0 and rerank > 0 and rest / 2 >= LEAST * needs.search_s
        baselines = rest / 2 if compares else 0.0
        search = rest - baselines
    end = now_s + search
    return Shares(
        end,
        end + baselines if needs.baselines_s and baselines else None,
        end + baselines + rerank if needs.rerank_s and rerank else None,
    )


@dataclass(frozen=True)
class Fit:
    """A training that fits into a time: so many epochs of so many images."""

    epochs: int
    images: int

    def of(self, recipe: Recipe) -> Recipe:
        """The recipe, its schedule compressed and by steps, as by few epochs it would end at a high rate."""
        if self.epochs == recipe.epochs:
            return recipe
        return replace(compressed(recipe, self.epochs), schedule="step")


def fit(recipe: Recipe, images: int, step_s: float, left_s: float) -> Fit:
    """As much of a training as fits: fewer epochs, or where not even one fits, one of fewer images.

    images: to learn from. step_s: seconds of a step. One step is made, however little time is left.
    """
    batch = min(recipe.batch, images)
    if step_s <= 0 or left_s == math.inf:
        return Fit(recipe.epochs, images)
    most = TIGHT * left_s / step_s
    epochs = most // (images // batch)
    if epochs >= 1:
        return Fit(int(min(recipe.epochs, epochs)), images)
    return Fit(1, max(1, int(most)) * batch)
