"""Surrogates: regressors that say how good an architecture may be, and how sure they are, from few trials.

Features come in blocks, one matrix `[N, F]` for each view of the architectures (options, operation counts,
paths); the Gaussian process weighs the blocks against each other, the others take them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import erfcx, log_ndtr, ndtr, ndtri

from nas.errors import ConfigError, unknown
from nas.searchers.goals import Goals
from nas.searchers.pareto import front, hypervolume
from nas.types import Trial

Matrix = NDArray[np.float64]
Predict = Callable[[Sequence[Matrix]], tuple[Matrix, Matrix]]
"""Blocks of `[M, F]` features to means `[M]` and standard deviations `[M]`."""
Surrogate = Callable[[Sequence[Matrix], Matrix, np.random.Generator], Predict]
"""Fits blocks of `[N, F]` features to targets `[N]` of about zero mean and unit variance."""

LENGTHS = (0.5, 1.0, 2.0, np.inf)
NOISES = (0.003, 0.03, 0.1, 0.3)
TUNED_ON = 100
"""At most so many trials choose the hyper-parameters, so that a long search stays fast."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """Hyper-parameters of the Gaussian process: one length scale for each block, and the noise's share."""

    lengths: tuple[float, ...]
    noise: float


def gaussian_process(blocks: Sequence[Matrix], y: Matrix, rng: np.random.Generator) -> Predict:
    """A Gaussian process with a squared-exponential kernel over all blocks (Rasmussen & Williams 2006).

    Length scales, where infinite ignores a block, and noise maximise the marginal likelihood (eq. 5.8), one
    coordinate at a time over a grid; the signal's variance is then known in closed form.
    """
    settings = _tuned(blocks, y, rng)
    lower, half, scale = _solved(_kernel(blocks, blocks, settings.lengths), y, settings.noise)
    weights = solve_triangular(lower.T, half)

    def predict(candidates: Sequence[Matrix]) -> tuple[Matrix, Matrix]:
        cross = _kernel(candidates, blocks, settings.lengths)
        left = solve_triangular(lower, cross.T, lower=True)
        variance = scale * np.maximum(1e-9, 1.0 - (left**2).sum(0))
        return cross @ weights, np.sqrt(variance)

    return predict


def random_forest(blocks: Sequence[Matrix], y: Matrix, rng: np.random.Generator) -> Predict:
    """100 regression trees (Breiman 2001); the deviation is that of the trees' answers."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(100, random_state=int(rng.integers(2**31))).fit(_joined(blocks), y)

    def predict(candidates: Sequence[Matrix]) -> tuple[Matrix, Matrix]:
        x = _joined(candidates).astype(np.float32)
        answers = np.stack([tree.tree_.predict(x)[:, 0] for tree in forest.estimators_])
        return answers.mean(0), answers.std(0)

    return predict


def bayesian_ridge(blocks: Sequence[Matrix], y: Matrix, rng: np.random.Generator) -> Predict:  # noqa: ARG001
    """Linear regression with a Gaussian prior whose strength is estimated (MacKay 1992)."""
    from sklearn.linear_model import BayesianRidge

    ridge = BayesianRidge().fit(_joined(blocks), y)

    def predict(candidates: Sequence[Matrix]) -> tuple[Matrix, Matrix]:
        mean, deviation = ridge.predict(_joined(candidates), return_std=True)
        return mean, deviation

    return predict


SURROGATES: Mapping[str, Surrogate] = MappingProxyType(
    {"gp": gaussian_process, "forest": random_forest, "ridge": bayesian_ridge}
)


def surrogate(name: str) -> Surrogate:
    """The surrogate of that name."""
    if name not in SURROGATES:
        raise ConfigError(unknown("surrogate", name, SURROGATES))
    return SURROGATES[name]


def _joined(blocks: Sequence[Matrix]) -> Matrix:
    return np.concatenate(blocks, axis=1)


def _kernel(left: Sequence[Matrix], right: Sequence[Matrix], lengths: Sequence[float]) -> Matrix:
    total = np.zeros((len(left[0]), len(right[0])))
    for a, b, length in zip(left, right, lengths, strict=True):
        if np.isfinite(length):
            total += _squared_distances(a, b) / length**2
    kernel: Matrix = np.exp(-total)
    return kernel


def _squared_distances(a: Matrix, b: Matrix) -> Matrix:
    squares: Matrix = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * a @ b.T
    return np.maximum(0.0, squares)


def _solved(kernel: Matrix, y: Matrix, noise: float) -> tuple[Matrix, Matrix, float]:
    """The Cholesky factor L of kernel plus noise, L⁻¹ y, and the signal's variance."""
    lower = cholesky(kernel + noise * np.eye(len(y)), lower=True)
    half = solve_triangular(lower, y, lower=True)
    return lower, half, max(1e-9, float(half @ half) / len(y))


def _tuned(blocks: Sequence[Matrix], y: Matrix, rng: np.random.Generator) -> _Settings:
    """The settings of the largest marginal likelihood, each tried in turn, twice over."""
    rows = np.arange(len(y)) if len(y) <= TUNED_ON else np.sort(rng.choice(len(y), TUNED_ON, replace=False))
    squares = [_squared_distances(block[rows], block[rows]) for block in blocks]
    likelihood = cache(partial(_log_likelihood, squares, y[rows]))
    best = _Settings((1.0,) * len(blocks), 0.1)
    for _ in range(2):
        for position in range(len(blocks) + 1):
            for changed in _variants(best, position):
                if likelihood(changed) > likelihood(best):
                    best = changed
    return best


def _variants(settings: _Settings, position: int) -> Iterator[_Settings]:
    if position == len(settings.lengths):
        yield from (_Settings(settings.lengths, noise) for noise in NOISES)
        return
    for length in LENGTHS:
        lengths = (*settings.lengths[:position], length, *settings.lengths[position + 1 :])
        yield _Settings(lengths, settings.noise)


def _log_likelihood(squares: Sequence[Matrix], y: Matrix, settings: _Settings) -> float:
    """Up to a constant, with the signal's variance at its best value."""
    finite = [
        s / length**2 for s, length in zip(squares, settings.lengths, strict=True) if np.isfinite(length)
    ]
    kernel = np.exp(-sum(finite, np.zeros_like(squares[0])))
    lower, _, scale = _solved(kernel, y, settings.noise)
    return float(-0.5 * len(y) * np.log(scale) - np.log(np.diag(lower)).sum())


Vector = NDArray[np.float64]
CAUTION = 0.5
"""Share of the deviation in draws of a Pareto search; on NAS-Bench-201 better than the whole."""
ROOT_2PI = np.sqrt(2 * np.pi)
CANCELLED = -1e4
"""Below it, `1 - |z| Phi(z) / phi(z)` is less exact than its limit, `1 / z^2`."""
Kind = Literal["ei", "thompson"]


def promise(
    goals: Goals,
    trials: Sequence[Trial],
    blocks: Sequence[Matrix],
    *,
    fit: Surrogate,
    kind: Kind,
    rng: np.random.Generator,
) -> Vector:
    """How promising each of M candidates is `[M]`, as a logarithm; larger is better.

    trials: N finished ones. blocks: features `[N + M, F]`, the candidates after the trials.

    One objective: expected improvement (Jones et al. 1998, eq. 15) or a Thompson draw, on targets that are
    the normal scores of ranks, since only the order counts. Several: what a draw from the surrogates would
    add to the front's hypervolume, after TSEMO (Bradford et al. 2018, §3); deviation: candidates are drawn
    independently of each other, at `CAUTION` times the deviation, and not as one function. Constraints
    multiply this by the probability that they hold (Gardner et al. 2014, eq. 4); logarithms still tell
    candidates apart where there is hardly any hope.
    """
    count = len(trials)
    known = [_standardised(block, count)[:count] for block in blocks]
    new = [_standardised(block, count)[count:] for block in blocks]
    scores, violations = goals.table(trials)
    feasible = violations == 0
    chance = np.zeros(len(new[0]))
    for bound in goals.constraints:
        slack = np.array(
            [(bound.limit - t.metrics[bound.metric]) * (1 if bound.at_most else -1) for t in trials]
        )
        mean, sd = fit(known, slack / (np.abs(slack).mean() or 1.0), rng)(new)
        chance = chance + log_ndtr(mean / np.maximum(sd, 1e-9))
    if scores.shape[1] == 1:
        target = normal_ranks(scores[:, 0])
        mean, sd = fit(known, target, rng)(new)
        if kind == "thompson":
            draw = mean + sd * rng.standard_normal(len(mean))
            return chance + _log(draw - draw.min() + 1e-9)
        return chance + log_expected_improvement(mean, sd, target[feasible].max(initial=target.min()))
    targets = np.stack([_tamed(column) for column in scores.T], axis=1)
    moments = [fit(known, target, rng)(new) for target in targets.T]
    noise = CAUTION * rng.standard_normal((len(moments), len(chance)))
    draws = np.stack([mean + sd * z for (mean, sd), z in zip(moments, noise, strict=True)], axis=1)
    gain = volume_gain(targets[feasible], draws)
    # Where no draw reaches beyond the front, the one that comes nearest on the whole.
    return chance + (_log(gain) if gain.any() else log_ndtr(draws.sum(1)))


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


def _log(values: Vector) -> Vector:
    logarithms: Vector = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    return logarithms


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


def _standardised(block: Matrix, count: int) -> Matrix:
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
