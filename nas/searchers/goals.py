"""What a search is for: objectives and constraints, as typed by a user and as used by searchers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError, check_length
from nas.files.schemas import GoalsRecord, checked
from nas.searchers.pareto import crowding, front, ranks
from nas.types import Constraint, Objective, Trial, of_longest_training

MAX_TEXT = 1000
"""Characters of an objective or a constraint; what reads them takes time by the square of it."""
_SHARE = "val_acc"
_NAME = r"[A-Za-z_]\w*"
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"\s*([+-]?)\s*(?:({_NUMBER})\s*\*\s*)?({_NAME})\s*")
_BOUND = re.compile(rf"\s*({_NAME})\s*(<=|>=)\s*(-?{_NUMBER})\s*")


@dataclass(frozen=True, slots=True)
class Goals:
    """One or several objectives under constraints.

    objectives: with several, a search is for their Pareto front.
    constraints: what breaks one is worse than everything that keeps them all.
    """

    objectives: tuple[Objective, ...] = (Objective(),)
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        names = [objective.name for objective in self.objectives]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"goals: got objectives {names}, wanted at least one, each once")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that must be measured, each once."""
        wanted = [name for objective in self.objectives for name in objective.metrics]
        return tuple(dict.fromkeys([*wanted, *(bound.metric for bound in self.constraints)]))

    def only(self, who: str) -> Objective:
        """The objective of a search that can have one only."""
        if len(self.objectives) > 1:
            names = ", ".join(objective.name for objective in self.objectives)
            raise ConfigError(
                f"{who} has one objective, got {names}; use nsga2 or guided for a Pareto front, or weigh "
                "them: 'val_acc - 0.01*latency_ms'"
            )
        return self.objectives[0]

    def violation(self, metrics: Mapping[str, float]) -> float:
        """By how much the constraints are broken in all, each relative to its limit; 0 when all hold."""
        return sum(bound.excess(metrics) for bound in self.constraints)

    def scores(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The values of the objectives, turned so that larger is better."""
        return tuple(objective.score(metrics) for objective in self.objectives)

    def fitness(self, trial: Trial) -> tuple[float, float]:
        """What one-objective searchers compare, larger first: less violation, then the objective's score."""
        self.check(trial)
        return -self.violation(trial.metrics), self.objectives[0].score(trial.metrics)

    def check(self, trial: Trial) -> None:
        """Raises ConfigError when a finished trial lacks a metric."""
        for name in self.metrics:
            if name not in trial.metrics:
                raise ConfigError(
                    f"the search decides by {name!r}, but trial {trial.number} has {sorted(trial.metrics)}; "
                    "give searcher and study the same goals"
                )

    def table(self, trials: Sequence[Trial]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores `[N, K]` and violations `[N]` of finished trials."""
        for trial in trials:
            self.check(trial)
        scores = np.array([self.scores(t.metrics) for t in trials]).reshape(-1, len(self.objectives))
        return scores, np.array([self.violation(t.metrics) for t in trials])

    def ordered(self, trials: Sequence[Trial]) -> list[Trial]:
        """Finished trials, best first: by violation and objective, or by front and then crowding.

        Of equal ones the earlier comes first.
        """
        if len(self.objectives) == 1:
            return sorted(trials, key=self.fitness, reverse=True)
        return [trials[i] for i in selection_order(*self.table(trials))]

    def kept_by(self, trials: Iterable[Trial]) -> list[Trial]:
        """The finished trials that keep all constraints."""
        return [t for t in trials if t.state == "done" and self.violation(t.metrics) == 0]

    def broken_by(self, trials: Sequence[Trial]) -> set[int]:
        """The numbers of the finished trials that break a constraint."""
        return {t.number for t in trials if t.state == "done" and self.violation(t.metrics) > 0}

    def front(self, trials: Sequence[Trial]) -> list[Trial]:
        """The finished trials that keep all constraints and that none dominates, in their order."""
        scores, violations = self.table(trials)
        kept = [trial for trial, excess in zip(trials, violations, strict=True) if excess == 0]
        return [kept[i] for i in front(scores[violations == 0])]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the inverse of `from_dict`."""
        return {
            "objectives": [[o.metric, o.maximize, [list(term) for term in o.added]] for o in self.objectives],
            "constraints": [[c.metric, c.limit, c.at_most] for c in self.constraints],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Goals:
        """The goals that `to_dict` wrote down; what else stands in `data` is left alone.

        Raises:
            ConfigError: when they were written by something else.
        """
        record = checked(GoalsRecord, data, "the goals of a search", "record of goals")
        objectives = [Objective(name, maximize, tuple(added)) for name, maximize, added in record.objectives]
        return cls(tuple(objectives), tuple(Constraint(*bound) for bound in record.constraints))

    def __str__(self) -> str:
        wanted = [f"{'max' if o.maximize else 'min'} {o.name}" for o in self.objectives]
        return ", ".join([*wanted, *map(str, self.constraints)])


def selection_order(scores: NDArray[np.float64], violations: NDArray[np.float64]) -> list[int]:
    """Rows of `[N, K]` from best to worst: by front, then by crowding within it (NSGA-II, §III-C)."""
    rank = ranks(scores, violations)
    distance = np.zeros(len(scores))
    for number in np.unique(rank):
        members = np.flatnonzero(rank == number)
        distance[members] = crowding(scores[members])
    return sorted(range(len(scores)), key=lambda i: (rank[i], -distance[i]))


def parse_goals(
    objectives: Sequence[str] = (),
    constraints: Sequence[str] = (),
    *,
    default: Objective = Objective(),  # noqa: B008 - frozen
) -> Goals:
    """Goals from text: `"val_acc"`, `"-latency_ms"`, `"val_acc - 0.01*latency_ms"`, `"params<=3e6"`.

    default: the objective where none is given.
    """
    wanted = tuple(map(parse_objective, objectives)) or (default,)
    return Goals(wanted, tuple(map(parse_constraint, constraints)))


def parse_objective(text: str) -> Objective:
    """A metric, or a weighted sum of metrics; a sum that begins with a minus is minimised."""
    check_length("objective", text, MAX_TEXT)
    terms: list[tuple[str, float]] = []
    at = 0
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None or (terms and not match[1]):
            raise ConfigError(
                f"objective {text!r}: wanted a metric or a sum such as 'val_acc', '-latency_ms' or "
                "'val_acc - 0.01*latency_ms'"
            )
        terms.append((match[3], float(match[2] or 1) * (-1 if match[1] == "-" else 1)))
        at = match.end()
    if not terms or terms[0][1] == 0:
        raise ConfigError(f"objective {text!r}: wanted at least one metric with a weight other than 0")
    (first, lead), *rest = terms
    # Divided by the first weight, the sum keeps its order; a negative one turns its direction.
    added = tuple((name, weight / lead) for name, weight in rest)
    if not all(map(math.isfinite, (lead, *(weight for _, weight in added)))):
        raise ConfigError(f"objective {text!r}: its weights are too far apart; wanted finite numbers")
    return Objective(first, lead > 0, added)


def parse_constraint(text: str) -> Constraint:
    """A bound on one metric: `"params<=3e6"` or `"val_acc >= 0.9"`."""
    check_length("constraint", text, MAX_TEXT)
    match = _BOUND.fullmatch(text)
    if match is None or not math.isfinite(float(match[3])):
        raise ConfigError(f"constraint {text!r}: wanted METRIC<=NUMBER or METRIC>=NUMBER, e.g. 'params<=3e6'")
    bound = Constraint(match[1], float(match[3]), at_most=match[2] == "<=")
    if bound.metric == _SHARE and not bound.at_most and bound.limit > 1:
        raise ConfigError(
            f"constraint {text!r}: {_SHARE} is a share of images, at most 1; for percent write "
            f"'{_SHARE}>={bound.limit / 100:g}'"
        )
    return bound


def longest(history: Sequence[Trial], goals: Goals) -> list[Trial]:
    """The finished trials that keep all constraints, those of the highest fidelity: they can be compared."""
    return of_longest_training(goals.kept_by(history))
