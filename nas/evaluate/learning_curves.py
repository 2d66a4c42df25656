"""What the first epochs of a training say about its end: a forecast with an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Fine enough that a curve between two rates differs by less than the smallest noise.
_POWERS = np.geomspace(0.05, 3.0, 96)
_DECAYS = np.geomspace(0.01, 2.0, 96)
_NOISES = np.geomspace(0.002, 0.3, 14)
# Of the first epoch's accuracy and of all that is gained later: weak, and centred on a modest gain.
_PRIOR_MEAN = np.asarray([0.5, 0.2])
_PRIOR_SD = np.asarray([0.5, 0.4])


@dataclass(frozen=True)
class EarlyStop:
    """Ends a training that will hardly beat the best one so far; a `should_stop` of `Trained`.

    best: the accuracy of that one, in [0, 1]. chance: the probability below which a training ends.
    """

    best: float
    chance: float

    def __call__(self, accuracies: Sequence[float], epochs: int) -> bool:
        """accuracies: after the epochs so far. epochs: that are granted."""
        if len(accuracies) < 2:
            return False
        return 1 - extrapolate(accuracies, at=epochs).cdf(self.best) < self.chance


def extrapolate(values: Sequence[float], *, at: int) -> NormalDist:
    """A belief about the validation accuracy after epoch `at`, from the first epochs of the same training.

    values: [n] accuracies in [0, 1] after epochs 1, 2, ..., n, at least two.
    at: an epoch after n.

    The mean is in [0, 1]; the deviation includes the noise of one evaluation.

    Every curve is a power law `a - b t^-c` or an exponential `a - b exp(-c t)` (two of the shapes of
    Domhan et al. 2015) with independent normal noise. Given the family, c and the noise it is
    linear in (a, b), so that posterior, prediction and evidence are closed forms (Bishop 2006, eqs. 3.50,
    3.51, 3.59 and 3.86); c and the noise are averaged over a grid by their evidence. Deviation from Domhan
    et al.: they sample the parameters of a weighted sum of eleven shapes.

    The model knows no late take-off: with two or three epochs at chance level it is overconfident. To rank
    trainings of equal length the last accuracy is no worse; a forecast says what is still possible.
    """
    curve = np.asarray(values, dtype=np.float64)
    means, variances, log_evidence = _posteriors(curve, _features(len(curve), at))
    weights = np.exp(log_evidence - log_evidence.max())
    weights /= weights.sum()
    mean = float((weights * means).sum())
    variance = float((weights * (variances + (means - mean) ** 2)).sum())
    return NormalDist(min(max(mean, 0.0), 1.0), sqrt(variance))


def _features(observed: int, at: int) -> Floats:
    """[G, n + 1, 2] what multiplies the first accuracy and the total gain at epochs 1..n and `at`.

    `a - b s(t)`, s scaled to s(1) = 1, is `(a - b) + b (1 - s(t))`: an accuracy after the first epoch and a
    gain, of which something is known before, whatever family and c.
    """
    epochs = np.append(np.arange(1.0, observed + 1), at)
    powers = epochs ** -_POWERS[:, None]
    exponentials = np.exp(-_DECAYS[:, None] * (epochs - 1))
    missing = np.concatenate([powers, exponentials])
    return np.stack([np.ones_like(missing), 1 - missing], axis=-1)


def _posteriors(curve: Floats, features: Floats) -> tuple[Floats, Floats, Floats]:
    """[S, G] mean and variance of the prediction, and log evidence, for every noise S and shape G.

    The noise has a grid of its own because a conjugate prior would scale the prior of start and gain with
    it, and a smooth curve would then be believed to have nothing left to gain.
    """
    seen, target = features[:, :-1], features[:, -1]
    surprise = curve - seen @ _PRIOR_MEAN
    accuracy = _NOISES[:, None] ** -2
    gram = np.einsum("gnk,gnl->gkl", seen, seen)
    precision = accuracy[..., None, None] * gram + np.diag(_PRIOR_SD**-2.0)
    pull = accuracy[..., None] * np.einsum("gnk,gn->gk", seen, surprise)
    shift = np.linalg.solve(precision, pull[..., None])[..., 0]
    spread = np.linalg.solve(precision, np.broadcast_to(target[..., None], (*pull.shape, 1)))[..., 0]
    means = target @ _PRIOR_MEAN + (target * shift).sum(-1)
    variances = (target * spread).sum(-1) + _NOISES[:, None] ** 2
    misfit = accuracy * (surprise**2).sum(-1) - (pull * shift).sum(-1)
    log_evidence = -0.5 * (misfit + np.linalg.slogdet(precision)[1]) - len(curve) * np.log(_NOISES)[:, None]
    return means, variances, log_evidence
