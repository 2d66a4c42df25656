"""A contest of searchers on one table: races with the same protocol, goals and seeds, checked at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nas.errors import ConfigError
from nas.evaluate.benchmarks.benchmark import Benchmark, load_benchmark
from nas.evaluate.benchmarks.race import Race, check_race, reference_point
from nas.evaluate.benchmarks.replay import UNBOUNDED, Protocol
from nas.searchers.goals import Goals, parse_goals
from nas.types import Objective

CURVES = 8
ONE, SEVERAL = ("random", "evolution", "local", "guided"), ("random", "nsga2", "guided")
"""What is compared unless searchers are named: for one objective, for several."""


def plan_contest(
    name: str,
    searchers: Sequence[str] = (),
    *,
    trials: int | None = None,
    budget_s: float | None = None,
    epochs: int | None = None,
    dataset: str | None = None,
    folder: Path | None = None,
    objectives: Sequence[str] = (),
    constraints: Sequence[str] = (),
    reference: str | None = None,
    settings: Mapping[str, object] | None = None,
    seed: int = 0,
) -> tuple[Benchmark, list[Race]]:
    """The table and one race for each searcher.

    trials: evaluations of each search, 100 unless given; budget_s: simulated seconds instead.
    epochs: of the training that selection sees; the longest, or with a budget the shortest, unless given.
    objectives, constraints: as text, by default the table's own signal. reference: see `reference_point`.
    settings: of the searchers; a table named like one of them is for it alone.

    Raises:
        ConfigError: for anything that no race could be run with.
    """
    if budget_s is not None and trials is not None:
        raise ConfigError("give --trials or --time-budget, not both")
    table = load_benchmark(name, dataset=dataset, folder=folder)
    fidelity = table.fidelities[0 if budget_s is not None else -1] if epochs is None else epochs
    if fidelity not in table.fidelities:
        raise ConfigError(f"{name} knows {table.fidelities} epochs, not {fidelity}")
    goals = parse_goals(objectives, constraints)
    if not objectives:
        goals = Goals((Objective(table.signal),), goals.constraints)
    point: tuple[float, ...] = ()
    if len(goals.objectives) > 1:
        if reference is None:
            raise ConfigError('several objectives need --reference, e.g. --reference "0.15,1.5m"')
        point = reference_point(reference, table, goals, fidelity)
    elif reference is not None:
        raise ConfigError("--reference is for several objectives; remove it")
    evaluations = (100 if budget_s is None else UNBOUNDED) if trials is None else trials
    protocol = Protocol(evaluations, fidelity, budget_s)
    labels = list(dict.fromkeys(searchers or (ONE if len(goals.objectives) == 1 else SEVERAL)))
    if len(labels) > CURVES:
        raise ConfigError(f"got {len(labels)} searchers, but a picture has at most {CURVES} curves")
    races = [
        Race(name, label, protocol, goals, _own(label, labels, settings or {}), dataset, folder, point, seed)
        for label in labels
    ]
    for race in races:
        check_race(race)
    return table, races


def _own(label: str, labels: Sequence[str], settings: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    """The settings of one searcher: those for all, then those in its own table."""
    common: dict[str, object] = {}
    own: dict[str, object] = {}
    for key, value in settings.items():
        if not isinstance(value, Mapping):
            common[key] = value
        elif key not in labels:
            raise ConfigError(f"settings for {key!r} are given, but only {', '.join(labels)} are compared")
        elif key == label:
            own.update(value)
    return tuple((common | own).items())
