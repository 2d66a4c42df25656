"""The default search by trials: a model of them, which begins around an architecture known to be good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.searchers.predictor_guided import (
    Guided,
    gaussian_process,
    log_expected_improvement,
    normal_ranks,
    standardised,
)
from nas.searchers.searcher import unseen
from nas.space.space import Space
from nas.types import Genotype, Trial

Vector = NDArray[np.float64]

LENGTHS, NOISES = (1.0, 2.0, 4.0, np.inf), (1.0, 3.0, 10.0)
"""Of the Gaussian process: shorter lengths cannot be told from noise, and a short training is mostly that."""
RIDGE = 0.1
"""Of the regression that foretells costs."""


@dataclass(frozen=True)
class Auto(Guided):
    """Bayesian optimisation that begins around the default architecture and reckons with costs and noise.

    The first `init` architectures are mutants of the default, by one edit and by two, and every other one is
    random. Then it is `guided`, but for these: the mean of the Gaussian process is linear in the logarithm of
    the cost, as larger networks tend to be better, and its noise is the signal's variance or more; what it
    takes has the largest expected improvement for the square root of its cost (Snoek et al. 2012, §3.2, have
    the cost itself, by which only small networks would be tried). Costs are multiply-accumulates; those of
    what was not trained yet are foretold from the options.

    With several objectives or constraints it is `guided`.

    dearest: nothing is tried that is foretold to cost more than so many times what the default does.
    default: an architecture that is known to be good; None where there is none.
    """

    dearest: float = 2.0
    default: Genotype | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.dearest >= 1:
            raise ConfigError(f"auto: dearest is {self.dearest}, wanted at least 1")

    @property
    def ranks(self) -> bool:
        """Whether trials are ranked by its model: where there is one objective and no constraint."""
        return len(self.goals.objectives) == 1 and not self.goals.constraints

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """A new architecture."""
        if not self.ranks:
            return super().ask(space, history, rng)
        number, done = len(history), [t for t in (*self.earlier, *history) if t.state == "done"]
        if number < self.init or len(done) < 2:
            return unseen(space, history, rng, propose=lambda: self._first(space, number, rng))
        best = self.ranked(space, done, rng)[: self.parents]
        candidates = self._candidates(space, history, best, rng)
        costs = self.costs(space, done, candidates)
        if (most := self._most(done)) is not None:
            candidates = [g for g, cost in zip(candidates, costs, strict=True) if cost <= most]
            costs = costs[costs <= most]
        if not candidates:
            return unseen(space, history, rng, propose=lambda: space.sample(rng))
        known = [t.genotype for t in done]
        mean, sd = self.posterior(space, done, [*known, *candidates], rng)
        new, highest = slice(len(known), None), float(mean[: len(known)].max())
        gain = log_expected_improvement(mean[new], sd[new], highest)
        return candidates[int(np.argmax(gain - 0.5 * costs))]

    def posterior(
        self, space: Space, trials: Sequence[Trial], genotypes: Sequence[Genotype], rng: np.random.Generator
    ) -> tuple[Vector, Vector]:
        """Mean and deviation of each architecture's score, `[N]`, in normal scores of the trials' ranks.

        A mean is drawn towards those of similar architectures, the more so the noisier trials are.
        """
        count, every = len(trials), [*(t.genotype for t in trials), *genotypes]
        y = self._signal(trials)
        costs = self.costs(space, trials, every)
        costs = (costs - costs[:count].mean()) / (costs[:count].std() or 1.0)
        trend = costs * (costs[:count] @ y) / (count + 1)  # a ridge regression
        blocks = [standardised(block, count) for block in self._blocks(space, every)]
        known, new = [b[:count] for b in blocks], [b[count:] for b in blocks]
        mean, sd = gaussian_process(known, y - trend[:count], rng, lengths=LENGTHS, noises=NOISES)(new)
        return trend[count:] + mean, sd

    def ranked(self, space: Space, trials: Sequence[Trial], rng: np.random.Generator) -> list[Trial]:
        """Finished trials, the largest posterior mean first."""
        if len(trials) < 2:
            return list(trials)
        mean, _ = self.posterior(space, trials, [t.genotype for t in trials], rng)
        return [trials[i] for i in np.argsort(-mean, kind="stable")]

    def _signal(self, trials: Sequence[Trial]) -> Vector:
        """Normal scores of the objective; of an accuracy together with the loss, which has less noise."""
        scores = normal_ranks(self.goals.table(trials)[0][:, 0])
        losses = [t.metrics.get("val_loss", np.nan) for t in trials]
        if self.goals.objectives[0].metric != "val_acc" or not np.isfinite(losses).all():
            return scores
        return normal_ranks(scores - normal_ranks(np.array(losses)))

    def _first(self, space: Space, number: int, rng: np.random.Generator) -> Genotype:
        if (genotype := self.default) is None or number % 2 == 0:
            return space.sample(rng)
        for _ in range(1 + number // 2 % 2):
            genotype = space.mutate(genotype, rng)
        return genotype

    def _most(self, done: Sequence[Trial]) -> float | None:
        """The logarithm of what an architecture may cost; None where the default's cost is not known."""
        own = [t.metrics["macs"] for t in done if t.genotype == self.default and "macs" in t.metrics]
        return float(np.log(self.dearest * own[0])) if own else None

    def costs(self, space: Space, done: Sequence[Trial], genotypes: Sequence[Genotype]) -> Vector:
        """Logarithms of multiply-accumulates `[N]`, by ridge regression on options; 0 where no trial has any.

        To count them takes as long as a step of a small network, and in most spaces they are a sum over the
        decisions.
        """
        known = {t.genotype: t.metrics["macs"] for t in done if t.metrics.get("macs", 0) > 0}
        if not known:
            return np.zeros(len(genotypes))
        x = np.array([np.concatenate(space.one_hot(g)) for g in (*known, *genotypes)])
        y, x = np.array([*known.values()]), x - x[: len(known)].mean(0)
        left, new = x[: len(known)], x[len(known) :]
        weights = np.linalg.solve(left.T @ left + RIDGE * np.eye(left.shape[1]), left.T @ (y - y.mean()))
        guesses = np.maximum(y.mean() + new @ weights, 0.5 * y.min())
        return np.log([known.get(g, guess) for g, guess in zip(genotypes, guesses, strict=True)])
