"""The record of a differentiable search's health, checked before it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.errors import ConfigError
from nas.files.schemas import EpochRecord
from nas.show.draw.style import Column, clean

Whole = NDArray[np.int64]

_MANY = 150  # records


@dataclass(frozen=True, eq=False)
class HealthSeries:
    """The health of a search after each of T epochs, undone ones included; NaN is unmeasured.

    epochs: [T] int, how far the search was; one that is not above the last shows that the search went back.
    skip_shares: [T] in [0, 1] for each kind of cell, the share of identities; near 1 is a collapse. The kind
        of decisions outside cells is empty.
    entropy: [T] in [0, 1]; 1 is undecided.
    eigenvalue: [T] of at least 0, the dominant one of the validation loss's Hessian in the alphas.
    mean: [T] of at least 0, of the last eigenvalues while they are watched.
    alarm: [T] of at least 0, the level that the mean should stay below.
    matching: [T] in [-1, 1], cosine of the training and validation gradients; higher is better.
    gap: [T] in [-1, 1], accuracy of the supernet minus that of the discretised architecture; lower is better.
    supernet_acc: [T] in [0, 1].
    changes: [T] int, decisions that are other than an epoch before.
    events: the record, in [0, T), at whose end something happened, and what.
    """

    epochs: Whole
    skip_shares: Mapping[str, Column]
    entropy: Column
    eigenvalue: Column
    mean: Column
    alarm: Column
    matching: Column
    gap: Column
    supernet_acc: Column
    changes: Whole
    events: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True, eq=False, slots=True)
class HealthRun:
    """A checked series and what follows from it.

    backs: [K] the first record after each return to an earlier epoch.
    """

    series: HealthSeries
    backs: Whole

    @property
    def length(self) -> int:
        """Records."""
        return len(self.series.epochs)

    @property
    def is_short(self) -> bool:
        """Whether single records can be told apart."""
        return self.length <= _MANY

    @property
    def line(self) -> float:
        """Points, how thick lines are; thin ones keep apart where there are many records."""
        return 1.8 if self.is_short else 1.1


def checked(series: HealthSeries) -> HealthRun:
    """The series as arrays that fit together."""
    epochs = _whole(series.epochs, "epochs", length=-1)
    count = len(epochs)
    arrays = HealthSeries(
        epochs=epochs,
        skip_shares={
            kind: _within(shares, f"skip_shares[{kind!r}]", count, 0, 1)
            for kind, shares in series.skip_shares.items()
        },
        entropy=_within(series.entropy, "entropy", count, 0, 1),
        eigenvalue=_within(series.eigenvalue, "eigenvalue", count, 0, np.inf),
        mean=_within(series.mean, "mean", count, 0, np.inf),
        alarm=_within(series.alarm, "alarm", count, 0, np.inf),
        matching=_within(series.matching, "matching", count, -1, 1),
        gap=_within(series.gap, "gap", count, -1, 1),
        supernet_acc=_within(series.supernet_acc, "supernet_acc", count, 0, 1),
        changes=_whole(series.changes, "changes", length=count),
        events=sorted(series.events, key=index_of),
    )
    for index, text in arrays.events:
        if not 0 <= index < count:
            raise ConfigError(
                f"health: got the event {clean(text)!r} at record {index}, "
                f"wanted one of the {count} records, counted from 0"
            )
    return HealthRun(arrays, np.flatnonzero(np.diff(epochs) <= 0) + 1)


def index_of(event: tuple[int, str]) -> int:
    """The record at whose end it happened."""
    return event[0]


def _whole(values: ArrayLike, who: str, *, length: int) -> Whole:
    """Whole numbers of at least 0; a `length` of -1 stands for any."""
    array = np.asarray(values)
    if array.ndim != 1 or (length >= 0 and len(array) != length):
        wanted = "[T]" if length < 0 else f"({length},) like epochs"
        raise ConfigError(f"health: got {who} of shape {array.shape}, wanted {wanted}")
    if len(array) and (array.dtype.kind not in "iu" or array.min() < 0):
        raise ConfigError(
            f"health: got {who} of {array.dtype} from {array.min():g}, wanted integers of at least 0"
        )
    return array.astype(np.int64)


def _within(values: ArrayLike, who: str, count: int, low: float, high: float) -> Column:
    """Numbers in [low, high], but for rounding, or NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,):
        raise ConfigError(f"health: got {who} of shape {array.shape}, wanted ({count},) like epochs")
    known = array[~np.isnan(array)]
    if known.size and not (
        np.isfinite(known).all() and known.min() >= low - 1e-6 and known.max() <= high + 1e-6
    ):
        wanted = f"in [{low:g}, {high:g}]" if isfinite(high) else f"finite and of at least {low:g}"
        raise ConfigError(
            f"health: got {who} from {known.min():.3g} to {known.max():.3g}, wanted numbers {wanted}, "
            "or NaN where nothing was measured"
        )
    return array.clip(low, high)


def series_of(epochs: Sequence[EpochRecord]) -> HealthSeries:
    """The record of a search as its picture wants it."""
    kinds = dict.fromkeys(kind for epoch in epochs for kind in epoch.skip_shares)

    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(epoch, name) for epoch in epochs], dtype=float)

    return HealthSeries(
        epochs=np.array([epoch.epoch for epoch in epochs]),
        skip_shares={kind: np.array([e.skip_shares.get(kind, np.nan) for e in epochs]) for kind in kinds},
        entropy=column("alpha_entropy"),
        eigenvalue=np.abs(column("eigenvalue")),
        mean=column("eigenvalue_mean"),
        alarm=column("eigenvalue_alarm"),
        matching=column("gradient_matching"),
        gap=column("discretisation_gap"),
        supernet_acc=column("val_acc"),
        changes=np.array([int(epoch.changes) for epoch in epochs]),
        events=[(place, event) for place, epoch in enumerate(epochs) for event in epoch.events],
    )
