"""Guided evolution: a surrogate fitted to the history picks the most promising of many mutations.

The surrogate is a Gaussian process. Features come in blocks, one matrix `[N, F]` for each view of the
architectures (options, operation counts, paths), which it weighs against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import erfcx, log_ndtr, ndtr, ndtri

from nas.errors import ConfigError
from nas.searchers.goals import Goals
from nas.searchers.pareto import front, hypervolume
from nas.searchers.searcher import tried, unseen
from nas.space.encodings import features
from nas.space.space import Space
from nas.types import Genotype, Trial

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Predict = Callable[[Sequence[Matrix]], tuple[Vector, Vector]]
"""Blocks of `[M, F]` features to means `[M]` and standard deviations `[M]`."""
Describe = Callable[[Genotype], Sequence[float]]
"""Numbers about an architecture that need no training: its size, its proxies."""

RANDOM, MUTANTS = 40, 30
"""Random candidates; mutants of a parent."""
LENGTHS = (0.5, 1.0, 2.0, np.inf)
NOISES = (0.003, 0.03, 0.1, 0.3)
TUNED_ON = 100
"""At most so many trials choose the hyper-parameters, so that a long search stays fast."""
CAUTION = 0.5
"""Share of the deviation in draws of a Pareto search; on NAS-Bench-201 better than the whole."""
ROOT_2PI = np.sqrt(2 * np.pi)
CANCELLED = -1e4
"""Below it, `1 - |z| Phi(z) / phi(z)` is less exact than its limit, `1 / z^2`."""


@dataclass(frozen=True)
class Guided:
    """Bayesian optimisation over architectures, with evolution proposing the candidates.

    After BANANAS (White et al. 2021, AAAI): candidates are mutations of the best trials, the surrogate sees
    paths. Deviations: a Gaussian process, from the first trial on, in place of five networks, and what
    `promise` says in place of independent Thompson sampling.

    init: random architectures in the beginning.
    parents: how many of the best are mutated; with several objectives, as many of the front.
    describe: further features of an architecture, known without training it.
    earlier: finished trials of another search in the same space, which the surrogate learns from too.
    goals: objectives and constraints.
    """

    init: int = 10
    parents: int = 5
    describe: Describe | None = None
    earlier: tuple[Trial, ...] = ()
    goals: Goals = Goals()  # noqa: RUF009 - a frozen value

    def __post_init__(self) -> None:
        if self.init < 2 or self.parents < 1:
            raise ConfigError(
                f"guided: init is {self.init} and parents {self.parents}, wanted at least 2 and 1"
            )

    def ask(self, space: Space, history: Sequence[Trial], rng: np.random.Generator) -> Genotype:
        """The most promising candidate; a random architecture while there are few trials."""
        if sum(trial.state == "done" for trial in history) < self.init:
            return unseen(space, history, rng, propose=lambda: space.sample(rng))
        done = [trial for trial in (*self.earlier, *history) if trial.state == "done"]
        candidates = self._candidates(space, history, done, rng)
        if not candidates:
            return unseen(space, history, rng, propose=lambda: space.sample(rng))
        blocks = self._blocks(space, [*(trial.genotype for trial in done), *candidates])
        worth = promise(self.goals, done, blocks, rng)
        return candidates[int(np.argmax(worth))]

    def _candidates(
        self, space: Space, history: Sequence[Trial], done: Sequence[Trial], rng: np.random.Generator
    ) -> list[Genotype]:
        """New neighbours of the best, some of their mutations, and random ones."""
        parents = self._parents(done, rng)
        near = [mutant for parent in parents for mutant in _mutants(space, parent, rng)]
        farther = [space.mutate(near[i], rng) for i in rng.integers(len(near), size=10 * len(parents))]
        drawn = [space.sample(rng) for _ in range(RANDOM)]
        return sorted({*near, *farther, *drawn} - tried(space, history))

    def _parents(self, done: Sequence[Trial], rng: np.random.Generator) -> list[Genotype]:
        """The best trials, or some of the front at random."""
        ordered = self.goals.ordered(done)
        if len(self.goals.objectives) == 1 or not (best := self.goals.front(done)):
            return [trial.genotype for trial in ordered[: self.parents]]
        chosen = rng.permutation(len(best))[: 2 * self.parents]
        return [best[i].genotype for i in chosen]

    def _blocks(self, space: Space, genotypes: Sequence[Genotype]) -> list[NDArray[np.float64]]:
        blocks = features(space, genotypes)
        if self.describe is None:
            return blocks
        described = np.array([self.describe(genotype) for genotype in genotypes], dtype=np.float64)
        return [*blocks, np.apply_along_axis(normal_ranks, 0, described)]


def _mutants(space: Space, parent: Genotype, rng: np.random.Generator) -> list[Genotype]:
    """All neighbours where there are few, else random mutations."""
    if sum(len(d.options) - 1 for d in space.decisions) <= MUTANTS:
        return space.neighbours(parent)
    return [space.mutate(parent, rng) for _ in range(MUTANTS)]


# -- the surrogate -------------------------------------------------------------------------------------


def gaussian_process(
    blocks: Sequence[Matrix],
    y: Vector,
    rng: np.random.Generator,
    *,
    lengths: Sequence[float] = LENGTHS,
    noises: Sequence[float] = NOISES,
) -> Predict:
    """A Gaussian process with a squared-exponential kernel over all blocks (Rasmussen & Williams 2006).

    Length scales, where infinite ignores a block, and noise maximise the marginal likelihood (eq. 5.8), one
    coordinate at a time over a grid; the signal's variance is then known in closed form.

    y: targets `[N]` of about zero mean. lengths: scales to choose from. noises: variances of the noise, in
      the signal's, to choose from; the middle one is the first guess.
    """
    *chosen, noise = _tuned(blocks, y, rng, lengths, noises)
    lower, half, scale = _solved(_kernel(_squares(blocks, blocks), chosen), y, noise)
    weights = solve_triangular(lower.T, half)

    def predict(candidates: Sequence[Matrix]) -> tuple[Vector, Vector]:
        cross = _kernel(_squares(candidates, blocks), chosen)
        left = solve_triangular(lower, cross.T, lower=True)
        variance = scale * np.maximum(1e-9, 1.0 - (left**2).sum(0))
        return cross @ weights, np.sqrt(variance)

    return predict


def _squares(left: Sequence[Matrix], right: Sequence[Matrix]) -> list[Matrix]:
    """The squared distances `[N, M]` of each block."""
    return [
        np.maximum(0.0, (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * a @ b.T)
        for a, b in zip(left, right, strict=True)
    ]


def _kernel(squares: Sequence[Matrix], lengths: Sequence[float]) -> Matrix:
    finite = [s / length**2 for s, length in zip(squares, lengths, strict=True) if np.isfinite(length)]
    kernel: Matrix = np.exp(-sum(finite, np.zeros_like(squares[0])))
    return kernel


def _solved(kernel: Matrix, y: Vector, noise: float) -> tuple[Matrix, Vector, float]:
    """The Cholesky factor L of kernel plus noise, L⁻¹ y, and the signal's variance."""
    lower = cholesky(kernel + noise * np.eye(len(y)), lower=True)
    half = solve_triangular(lower, y, lower=True)
    return lower, half, max(1e-9, float(half @ half) / len(y))


def _tuned(
    blocks: Sequence[Matrix],
    y: Vector,
    rng: np.random.Generator,
    lengths: Sequence[float] = LENGTHS,
    noises: Sequence[float] = NOISES,
) -> tuple[float, ...]:
    """The length scale of each block and the noise of the largest likelihood, each tried in turn, twice."""
    rows = np.arange(len(y)) if len(y) <= TUNED_ON else np.sort(rng.choice(len(y), TUNED_ON, replace=False))
    some = [block[rows] for block in blocks]
    likelihood = cache(partial(_log_likelihood, _squares(some, some), y[rows]))
    best = (*(1.0 for _ in blocks), noises[len(noises) // 2])
    for _ in range(2):
        for position, grid in enumerate([*(lengths for _ in blocks), noises]):
            for value in grid:
                changed = (*best[:position], value, *best[position + 1 :])
                if likelihood(changed) > likelihood(best):
                    best = changed
    return best


def _log_likelihood(squares: Sequence[Matrix], y: Vector, settings: tuple[float, ...]) -> float:
    """Up to a constant, with the signal's variance at its best value."""
    *lengths, noise = settings
    lower, _, scale = _solved(_kernel(squares, lengths), y, noise)
    return float(-0.5 * len(y) * np.log(scale) - np.log(np.diag(lower)).sum())


# -- the acquisition -----------------------------------------------------------------------------------


def promise(
    goals: Goals, trials: Sequence[Trial], blocks: Sequence[Matrix], rng: np.random.Generator
) -> Vector:
    """How promising each of M candidates is `[M]`, as a logarithm; larger is better.

    trials: N finished ones. blocks: features `[N + M, F]`, the candidates after the trials.

    One objective: expected improvement (Jones et al. 1998, eq. 15) on targets that are the normal scores of
    ranks, since only the order counts. Several: what a draw from the surrogates would add to the front's
    hypervolume, after TSEMO (Bradford et al. 2018, §3); deviation: candidates are drawn independently of each
    other, at `CAUTION` times the deviation, and not as one function. Constraints multiply this by the
    probability that they hold (Gardner et al. 2014, eq. 4); logarithms still tell candidates apart where
    there is hardly any hope.
    """
    count = len(trials)
    known = [standardised(block, count)[:count] for block in blocks]
    new = [standardised(block, count)[count:] for block in blocks]
    scores, violations = goals.table(trials)
    feasible = violations == 0
    chance = np.zeros(len(new[0]))
    for bound in goals.constraints:
        slack = np.array(
            [(bound.limit - t.metrics[bound.metric]) * (1 if bound.at_most else -1) for t in trials]
        )
        mean, sd = gaussian_process(known, slack / (np.abs(slack).mean() or 1.0), rng)(new)
        chance = chance + log_ndtr(mean / np.maximum(sd, 1e-9))
    if scores.shape[1] == 1:
        target = normal_ranks(scores[:, 0])
        mean, sd = gaussian_process(known, target, rng)(new)
        return chance + log_expected_improvement(mean, sd, target[feasible].max(initial=target.min()))
    targets = np.stack([_tamed(column) for column in scores.T], axis=1)
    moments = [gaussian_process(known, target, rng)(new) for target in targets.T]
    noise = CAUTION * rng.standard_normal((len(moments), len(chance)))
    draws = np.stack([mean + sd * z for (mean, sd), z in zip(moments, noise, strict=True)], axis=1)
    gain = volume_gain(targets[feasible], draws)
    log_gain: Vector = np.log(np.maximum(gain, np.finfo(np.float64).tiny))
    # Where no draw reaches beyond the front, the one that comes nearest on the whole.
    return chance + (log_gain if gain.any() else log_ndtr(draws.sum(1)))


def log_expected_improvement(mean: Vector, sd: Vector, best: float) -> Vector:
    """The logarithm of the mean of `max(0, Y - best)` for normal Y (Jones et al. 1998, eq. 15).

    Finite however far below the best the mean is (LogEI, Ament et al. 2023, "Unexpected improvements to
    expected improvement for Bayesian optimization", eqs. 8 and 9). Deviations count as 1e-9 at least.
    """
    sd = np.maximum(sd, 1e-9)
    logarithm: Vector = np.log(sd) + _log_h((mean - best) / sd)
    return logarithm


def volume_gain(scores: Matrix, candidates: Matrix) -> Vector:
    """How much hypervolume each candidate `[M, K]` would add to that of the scores `[N, K]`.

    Above a point below the front's worst values by a tenth of its extent, which counts as 1 at least, so that
    its ends may still be pushed.
    """
    if not len(scores):
        return np.zeros(len(candidates))
    best = scores[front(scores)]
    reference = best.min(0) - 0.1 * np.maximum(best.max(0) - best.min(0), 1.0)
    if best.shape[1] == 2:
        return _strips(best[np.argsort(best[:, 0])], candidates, reference)
    before = hypervolume(best, reference)
    return np.array([hypervolume(np.vstack([best, row]), reference) - before for row in candidates])


def normal_ranks(values: Vector) -> Vector:
    """The normal scores of the ranks (van der Waerden); ties share theirs."""
    from scipy.stats import rankdata

    scores: Vector = ndtri(rankdata(values) / (len(values) + 1))
    return scores


def _strips(best: Matrix, candidates: Matrix, reference: Vector) -> Vector:
    """The added area: between two neighbours of the front, what rises above the upper one."""
    left = np.append(reference[0], best[:, 0])
    right = np.append(best[:, 0], np.inf)
    floor = np.append(best[:, 1], reference[1])
    width = np.clip(np.minimum(candidates[:, :1], right) - left, 0.0, None)
    height = np.clip(candidates[:, 1:] - floor, 0.0, None)
    area: Vector = (width * height).sum(1)
    return area


def _log_h(z: Vector) -> Vector:
    """`log(phi(z) + z Phi(z))` of the standard normal density and distribution (Ament et al. 2023, eq. 9).

    Below -1 the two terms cancel, and what they have in common, `exp(-z^2 / 2)`, is taken out first; where
    their difference is lost to rounding all the same, it is `1 / z^2`.
    """
    result = np.empty_like(z)
    near = z > -1
    far = z <= CANCELLED
    between = ~near & ~far
    result[near] = np.log(np.exp(-0.5 * z[near] ** 2) / ROOT_2PI + z[near] * ndtr(z[near]))
    scaled = -z[between] * erfcx(-z[between] / np.sqrt(2)) * ROOT_2PI / 2
    result[between] = -0.5 * z[between] ** 2 - np.log(ROOT_2PI) + np.log1p(-scaled)
    result[far] = -0.5 * z[far] ** 2 - np.log(ROOT_2PI) - 2 * np.log(-z[far])
    return result


def standardised(block: Matrix, count: int) -> Matrix:
    """Columns scaled so that two trials are about a distance of one apart in the whole block."""
    spread = np.sqrt(2 * block[:count].var(0).sum())
    scaled: Matrix = block / (spread or 1.0)
    return scaled


def _tamed(values: Vector) -> Vector:
    """Zero mean and unit variance, after a long bad tail was cut: what is hopeless need not be told apart."""
    middle, good = np.quantile(values, [0.5, 0.9])
    cut = np.maximum(values, middle - 3 * (good - middle)) if good > middle else values
    standard: Vector = (cut - cut.mean()) / (cut.std() or 1.0)
    return standard
