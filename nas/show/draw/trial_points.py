"""A search, and those it is compared with, as columns of a plot: where trials are, when the best improved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.show.draw.time_axis import elapsed
from nas.types import Trial

_MUTED_HUES = ("#5F7F9B", "#B58B4A", "#8B6F96", "#6E9A86", "#8C8C8C")
BASELINE = _MUTED_HUES[0]
"""The line of what a search is compared with first."""


@dataclass(frozen=True, slots=True)
class Points:
    """The trials as columns: those with a value in the order of their numbers, and places of the failed.

    places, failed: on the horizontal axis.
    kept: [N] whether each keeps all constraints; others are never the best.
    """

    numbers: NDArray[np.int64]
    places: NDArray[np.float64]
    values: NDArray[np.float64]
    fidelities: NDArray[np.int64]
    kept: NDArray[np.bool_]
    failed: NDArray[np.float64]

    @classmethod
    def of(
        cls, trials: Sequence[Trial], metric: str, broken: Collection[int] = (), *, by_time: bool
    ) -> Points:
        """The columns of `trials` by `metric`; those with numbers in `broken` break a constraint."""
        places = axis_places(trials, by_time=by_time)
        done, failed = [], []
        for trial in trials:
            value = trial.metrics.get(metric, float("nan"))
            if trial.state == "done" and isfinite(value):
                done.append((trial.number, places[trial.number], value, trial.fidelity))
            elif trial.state != "running":
                failed.append(places[trial.number])
        done.sort()
        numbers, at, values, fidelities = zip(*done, strict=True) if done else ((), (), (), ())
        return cls(
            np.asarray(numbers, dtype=np.int64),
            np.asarray(at, dtype=np.float64),
            np.asarray(values, dtype=np.float64),
            np.asarray(fidelities, dtype=np.int64),
            np.asarray([number not in broken for number in numbers], dtype=np.bool_),
            np.asarray(failed, dtype=np.float64),
        )

    def improving(self, *, maximize: bool) -> NDArray[np.int64]:
        """[K] rows of the trials at which there was a new best."""
        kept = np.flatnonzero(self.kept)
        running = (np.maximum if maximize else np.minimum).accumulate(self.values[kept])
        return np.asarray(kept[np.diff(running, prepend=np.nan) != 0])


@dataclass(frozen=True, slots=True)
class Baseline:
    """Another search to compare with: when its best improved, and how that is drawn.

    places, values: [K] where on the horizontal axis there was a new best, and that best.
    dash: on and off lengths of its line.
    """

    name: str
    color: str
    dash: tuple[float, ...]
    places: NDArray[np.float64]
    values: NDArray[np.float64]


def baselines_of(
    runs: Mapping[str, Sequence[Trial]], metric: str, *, maximize: bool, by_time: bool
) -> list[Baseline]:
    """Each of `runs` in a muted colour of its own; ConfigError for one without a finite value."""
    found = []
    for (name, run), color in zip(runs.items(), cycle(_MUTED_HUES), strict=False):
        points = Points.of(run, metric, by_time=by_time)
        if not len(points.numbers):
            raise ConfigError(
                f"baselines[{name!r}]: got no finished trial with a finite {metric!r}; leave it out"
            )
        new = points.improving(maximize=maximize)
        dash = (5.0, 2.4) if len(run) == 1 else ()
        found.append(Baseline(name, color, dash, points.places[new], points.values[new]))
    return found


def axis_places(trials: Sequence[Trial], *, by_time: bool) -> dict[int, float]:
    """Where trials are on the horizontal axis, by their numbers: there, or at the seconds at their ends."""
    return elapsed(trials) if by_time else {trial.number: trial.number for trial in trials}
