"""What pictures of several series share: colours, checked columns, ticks, and labels that keep apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter
from numpy.typing import ArrayLike, NDArray

from nas.errors import ConfigError

Column = NDArray[np.float64]

SERIES = ("#0072B2", "#D55E00", "#009E73", "#A0307F", "#E0A500", "#56B4E9", "#1B2733", "#98A2AB")
"""Colours in order of use, at least 16 CIELAB units apart for the three kinds of colour blindness."""


def finite(values: ArrayLike, *, who: str, shape: tuple[int, ...]) -> Column:
    """`values` as finite float64 of `shape`, in which -1 stands for any length; `who` names the argument."""
    array = np.asarray(values, dtype=np.float64)
    fits = array.ndim == len(shape) and all(w in (-1, s) for w, s in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("N" if length < 0 else str(length) for length in shape)
        raise ConfigError(f"{who}: got shape {array.shape}, wanted [{wanted}]")
    if not np.isfinite(array).all():
        raise ConfigError(
            f"{who}: {int((~np.isfinite(array)).sum())} of {array.size} numbers are NaN or infinite; "
            "leave out what was not measured"
        )
    return array


def bad_end(scores: Column) -> float:
    """Where an axis may cut off scores [N], larger being better, that lie far below the rest."""
    best, worst, quarter = float(scores.max()), float(scores.min()), float(np.quantile(scores, 0.25))
    return max(worst, quarter - 1.2 * (best - quarter)) if best > quarter else worst


def padded(low: float, high: float, *, below: float, above: float) -> tuple[float, float]:
    """The range from `low` to `high` with room at both ends, as shares of it; never empty."""
    spread = (high - low) or 0.1 * abs(high) or 1.0
    return low - below * spread, high + above * spread


def tidy_ticks(axes: Axes, *, most: int, whole: bool = False) -> None:
    """About `most` round ticks an axis: plain numbers, or such as `"1.5M"` where those would be long.

    whole: the horizontal axis counts something, of which there are no halves.
    """
    # In the corner an upright axis's label would touch that of the other axis.
    for axis, corner in ((axes.xaxis, 0.0), (axes.yaxis, 0.03)):
        low, high = axis.get_view_interval()
        integer = whole and axis is axes.xaxis
        ticks = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=integer).tick_values(low, high)
        axis.set_ticks([tick for tick in ticks if low + corner * (high - low) <= tick <= high])
        plain = ScalarFormatter(useOffset=False)
        # Powers of ten would be written beside the axis, where other words are.
        plain.set_scientific(False)
        short = 1e-4 <= max(abs(low), abs(high)) < 1e4
        axis.set_major_formatter(plain if short else EngFormatter(sep=""))


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """The places nearest to `wanted` in the least-squares sense, in its order, at least `gap` apart.

    All lie in [low, high], which must have room for them. Without the gaps this is isotonic regression,
    solved by pooling adjacent violators (Barlow et al. 1972, section 1.2).
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, count = wanted[index] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            other, size = pools.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        pools.append((mean, count))
    top = high - gap * (len(wanted) - 1)
    flat = [min(max(mean, low), top) for mean, count in pools for _ in range(count)]
    places = {index: flat[rank] + rank * gap for rank, index in enumerate(order)}
    return [places[index] for index in range(len(wanted))]
