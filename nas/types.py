"""Core values: frozen, plain, comparable; no torch and no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

MOST = 10**9
"""The largest count of anything: epochs, trials, images."""
Genotype = tuple[int, ...]
"""One option index per `Decision`, in the space's order. Hashable, ordered, JSON-able."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One categorical variable of a search space.

    name: unique within the space, e.g. `"normal/0->2"`.
    options: what can be chosen, by name, in a fixed order.
    mixable: whether the options are modules that a supernet can hold at once.
    """

    name: str
    options: tuple[str, ...]
    mixable: bool = True


@dataclass(frozen=True, slots=True)
class Trial:
    """One architecture sent for one evaluation.

    number: position in the study, from 0; also seeds everything random about the trial.
    genotype: the architecture.
    fidelity: training epochs granted; 0 means scored untrained.
    metrics: measured values by name; empty until told; for a failed trial, what was found out all the same.
    cost_s: seconds of evaluation, as measured.
    reason: why a failed trial failed, e.g. `"nan: loss is not finite at step 12"`; empty otherwise.
    beside: numbers of the earlier trials that were still running when this one was proposed.
    """

    number: int
    genotype: Genotype
    fidelity: int = 0
    state: Literal["running", "done", "failed"] = "running"
    metrics: Mapping[str, float] = field(default_factory=dict)
    cost_s: float = 0.0
    reason: str = ""
    beside: tuple[int, ...] = ()

    def known(self, history: Iterable[Trial]) -> list[Trial]:
        """The done trials that this one was proposed after.

        An evaluation that looks back at these alone gives the same however often it is begun, whatever
        other workers have finished meanwhile.
        """
        return [t for t in self.before(history) if t.state == "done"]

    def before(self, history: Iterable[Trial]) -> list[Trial]:
        """The trials, failed ones too, that had ended when this one was proposed."""
        return [t for t in history if t.number < self.number and t.number not in self.beside]


def of_longest_training(trials: Iterable[Trial]) -> list[Trial]:
    """Those of the highest fidelity among them: their values can be compared."""
    trials = list(trials)
    most = max((t.fidelity for t in trials), default=0)
    return [t for t in trials if t.fidelity == most]


@dataclass(frozen=True, slots=True)
class Objective:
    """What a study optimises: one metric, or a weighted sum of several.

    metric: a key of `Trial.metrics`.
    maximize: whether larger is better.
    added: further metrics, each with its weight; the value is `metric + Σ weight * metric_i`.
    """

    metric: str = "val_acc"
    maximize: bool = True
    added: tuple[tuple[str, float], ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that the value is made of."""
        return (self.metric, *(name for name, _ in self.added))

    @property
    def name(self) -> str:
        """The value in words, as a user would write it."""
        return self.metric + "".join(f" {weight:+g}*{name}" for name, weight in self.added)

    def value(self, metrics: Mapping[str, float]) -> float:
        """The number that is optimised."""
        return metrics[self.metric] + sum(weight * metrics[name] for name, weight in self.added)

    def better(self, value: float) -> float:
        """`value` turned so that larger is better."""
        return value if self.maximize else -value

    def score(self, metrics: Mapping[str, float]) -> float:
        """The value turned so that larger is better."""
        return self.better(self.value(metrics))

    def with_value(self, trial: Trial) -> Trial:
        """The trial with the value among its metrics, under its name, where it has one."""
        if trial.state != "done" or not set(self.metrics) <= trial.metrics.keys():
            return trial
        return replace(trial, metrics={**trial.metrics, self.name: self.value(trial.metrics)})


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound on one metric, e.g. `params <= 3e6`.

    at_most: whether `limit` is the largest allowed value, else the smallest.
    """

    metric: str
    limit: float
    at_most: bool = True

    def excess(self, metrics: Mapping[str, float]) -> float:
        """By how much the bound is broken, relative to it; 0 when it holds."""
        over = metrics[self.metric] - self.limit
        return max(0.0, over if self.at_most else -over) / (abs(self.limit) or 1.0)

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.at_most else '>='} {self.limit:g}"
