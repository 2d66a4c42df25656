"""Trials, epochs and curves as the points that trackers are given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nas.oneshot.history import Epoch
from nas.show.tracking.tracker import Point
from nas.space.space import Space
from nas.training.history import Curve, EpochReport
from nas.types import Trial


def of_trials(series: str, trials: Iterable[Trial]) -> Iterator[Point]:
    """One point for each ended trial, at its number: metrics, epochs, seconds, whether it failed."""
    for trial in trials:
        if trial.state != "running":
            failed = float(trial.state == "failed")
            values = {"epochs": float(trial.fidelity), "seconds": trial.cost_s, "failed": failed}
            yield Point(series, trial.number, finite({**values, **trial.metrics}))


def of_search(
    series: str, space: Space, epochs: Sequence[Epoch], metrics: Sequence[Mapping[str, float]], *, after: int
) -> Iterator[Point]:
    """One point for each epoch of a search by gradients: its metrics, and the alphas by decision.

    metrics: of each epoch. after: epochs that were told before the first one; one that the search went back
      on counts.
    """
    options = {decision.name: decision.options for decision in space.decisions}
    for number, (epoch, measured) in enumerate(zip(epochs, metrics, strict=True), start=after + 1):
        values = {"epoch": float(epoch.epoch), "seconds": epoch.seconds, **measured}
        alphas = dict(zip(options, epoch.strengths, strict=True))
        yield Point(series, number, finite(values), alphas, options)


def of_report(series: str, report: EpochReport) -> Point:
    """One epoch of a training."""
    values = {"train_loss": report.train_loss, "lr": report.lr, "seconds": report.seconds}
    if report.val_loss is not None and report.val_acc is not None:
        values |= {"val_loss": report.val_loss, "val_acc": report.val_acc}
    return Point(series, report.epoch, finite(values))


def of_curve(series: str, curve: Curve) -> Iterator[Point]:
    """Every epoch of a training."""
    evaluated = {e: pair for e, *pair in zip(curve.val_epochs, curve.val_loss, curve.val_acc, strict=True)}
    epochs = len(curve.train_loss)
    rows = zip(curve.train_loss, curve.lr, curve.seconds, strict=True)
    for epoch, (loss, lr, seconds) in enumerate(rows, start=1):
        yield of_report(series, EpochReport(epoch, epochs, loss, lr, seconds, *evaluated.get(epoch, ())))


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Those values that a chart can show."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
