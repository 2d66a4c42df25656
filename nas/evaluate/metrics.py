"""Metrics as plain finite numbers, and how exact they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from nas.data.task import Split
from nas.errors import TrialError


def check_metrics(metrics: object) -> dict[str, float]:
    """Plain finite floats from what an evaluator returned: numpy scalars and 0-dim tensors are converted.

    Raises:
        TrialError: with reason `metric` (`nan` for values that are not finite), naming the metric and type.
    """
    if not isinstance(metrics, Mapping):
        raise TrialError(
            "metric", f"the evaluator returned {type(metrics).__name__}, wanted a dictionary of numbers"
        )
    checked = {}
    for name, value in metrics.items():
        item = getattr(value, "item", None)
        number = item() if item is not None and getattr(value, "ndim", None) == 0 else value
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TrialError("metric", f"metric {name!r} is a {type(value).__name__}, wanted a number")
        if not math.isfinite(converted := _as_float(number)):
            raise TrialError("nan", f"metric {name!r} is {converted}, wanted a finite number")
        checked[str(name)] = converted
    return checked


def _as_float(number: Real) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer beyond every float
        return math.inf


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share in [0, 1] seen on `count` images (Wilson 1927)."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def chance(split: Split) -> float:
    """The accuracy that guessing the commonest class may reach: the end of its 95 % interval."""
    return wilson(float(split.y.bincount().max()) / len(split), len(split))[1]


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics with as many digits as mean something."""
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}
