"""Images that are like no others, and images without content."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from nas.audit.image_table import Pool
from nas.audit.neighbours import nearest
from nas.data.arrays import Array
from nas.data.exclusions import Suspect

NEIGHBOURS, CUT = 10, 4.0
_FEWEST = 20


def outliers(pool: Pool, features: Tensor) -> list[Suspect]:
    """Images far from their 10 nearest neighbours, and those of one value only, the most suspect first.

    The distance is the mean over the neighbours in feature space (Angiulli and Pizzuti, Fast outlier
    detection in high dimensional spaces, 2002, with the mean for their sum). An image is suspect when the
    logarithm of its distance lies more than `CUT` robust deviations above the median, the deviation being
    1.4826 times the median distance from the median of the upper half: the lower half holds copies and
    crowded classes, which say nothing of how far regular images may be.

    features: [N, D] of the pool's images. Fewer than 20 images are not judged.
    """
    blank = [
        pool.suspect(number, "outlier", reason="every pixel has the same value", score=99.0)
        for number in np.flatnonzero(pool.is_blank).tolist()
    ]
    if len(pool) < _FEWEST:
        return blank
    scores = robust_scores(nearest(features, NEIGHBOURS)[0].mean(1).numpy())
    far = [number for number in np.flatnonzero((scores > CUT) & ~pool.is_blank).tolist()]
    far.sort(key=lambda number: -scores[number])
    return blank + [
        pool.suspect(number, "outlier", reason="far from all other images", score=scores[number])
        for number in far
    ]


def robust_scores(distances: Array) -> Array:
    """How many robust deviations each logarithm of a distance lies above the median, [N]."""
    logs = np.log(np.maximum(distances, 1e-9))
    middle = np.median(logs)
    spread = 1.4826 * np.median(logs[logs >= middle] - middle)
    scores: Array = (logs - middle) / max(spread, 1e-9)
    return scores
