"""Surrogates: regressors that say how good an architecture may be, and how sure they are, from few trials.

Features come in blocks, one matrix `[N, F]` for each view of the architectures (options, operation counts,
paths); the Gaussian process weighs the blocks against each other, the others take them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from nas.errors import ConfigError, unknown

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
