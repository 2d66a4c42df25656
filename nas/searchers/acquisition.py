"""What an untried architecture promises: expected improvement, Thompson draws, hypervolume to be gained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr, ndtr, ndtri

from nas.searchers.goals import Goals
from nas.searchers.pareto import front, hypervolume
from nas.searchers.surrogate import Surrogate
from nas.types import Trial

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
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
