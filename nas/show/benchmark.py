"""A contest of searchers on one table: races with the same protocol, goals and seeds, checked at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.evaluate.benchmarks.benchmark import Benchmark, load_benchmark
from nas.evaluate.benchmarks.race import Race, Runs, check_race, exact_front, reference_point
from nas.evaluate.benchmarks.replay import UNBOUNDED, Protocol
from nas.files.atomic import prepare_folder, write_json
from nas.searchers.goals import Goals, parse_goals
from nas.show import draw
from nas.text import counted
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


BAND = (0.1, 0.9)
"""Quantiles of the repeats between which a curve's band lies."""


def write_outcome(folder: Path, benchmark: Benchmark, races: Mapping[str, tuple[Race, Runs]]) -> list[Path]:
    """benchmark.json and anytime.svg/.png, with two objectives front.svg/.png too; returns their paths."""
    folder = prepare_folder(folder)
    race = next(iter(races.values()))[0]
    title = f"{benchmark.name} {race.dataset}" if race.dataset is not None else benchmark.name
    write_json(folder / "benchmark.json", to_dict(benchmark, races))
    written = [folder / "benchmark.json", folder / "anytime.svg", folder / "anytime.png"]
    several = len(race.goals.objectives) > 1
    figure = draw.draw_anytime(
        {name: bands(runs, seconds=race.protocol.budget_s is not None) for name, (_, runs) in races.items()},
        xlabel="simulated seconds" if race.protocol.budget_s is not None else "evaluations",
        ylabel="share of the exact hypervolume" if several else benchmark.report,
        title=f"{title}: mean and {BAND[0]:.0%} to {BAND[1]:.0%} of {_repeats(races)} repeats",
        subtitle=describe(benchmark, race),
        optimum=1.0 if several else benchmark.optimum,
    )
    draw.save(figure, *written[1:])
    if len(race.goals.objectives) == 2:
        name, (race, runs) = list(races.items())[-1]
        exact = exact_front(benchmark, race.goals, race.protocol.fidelity)
        figure = _front(race.goals, race, runs, exact, title=f"{title}: {name}, one repeat")
        written += [folder / "front.svg", folder / "front.png"]
        draw.save(figure, *written[3:])
    return written


def describe(benchmark: Benchmark, race: Race) -> str:
    """What was selected by what, in one line."""
    if len(race.goals.objectives) > 1:
        return f"{race.goals}, {counted(race.protocol.fidelity, 'epoch')}"
    if race.goals != Goals((Objective(benchmark.signal),)):
        wanted = f"selected by {race.goals} after {counted(race.protocol.fidelity, 'epoch')}"
        return f"{wanted}, reported by {benchmark.report}"
    return f"{benchmark.note} ({counted(race.protocol.fidelity, 'epoch')} for selection)"


def lines(races: Mapping[str, tuple[Race, Runs]], benchmark: Benchmark) -> list[str]:
    """The table of means and standard deviations, in percent, as text."""
    tables = {name: runs.table() for name, (_, runs) in races.items()}
    race = next(iter(races.values()))[0]
    if race.protocol.budget_s is not None:
        head = f"{'searcher':20}{'evaluations':>12}{'at the end':>18}"
        rows = [
            f"{name:20}{runs.counts.mean():>12.1f}{_cell(runs.table()[runs.values.shape[1]]):>18}"
            for name, (_, runs) in races.items()
        ]
        return [describe(benchmark, race), head, *rows]
    marks = sorted({mark for table in tables.values() for mark in table})
    head = f"{'searcher':20}" + "".join(f"{mark:>16}" for mark in marks)
    rows = [
        f"{name:20}" + "".join(f"{_cell(table[mark]) if mark in table else '':>16}" for mark in marks)
        for name, table in tables.items()
    ]
    return [describe(benchmark, race), head, *rows]


def to_dict(benchmark: Benchmark, races: Mapping[str, tuple[Race, Runs]]) -> dict[str, Any]:
    """Plain values for JSON: settings, means and standard deviations at the marks, curves with bands."""
    race = next(iter(races.values()))[0]
    return {
        "benchmark": benchmark.name,
        "dataset": race.dataset,
        "description": describe(benchmark, race),
        "goals": race.goals.to_dict(),
        "reference": list(race.reference),
        "fidelity": race.protocol.fidelity,
        "trials": race.protocol.trials if race.protocol.budget_s is None else None,
        "time_budget_s": race.protocol.budget_s,
        "seed": race.seed,
        "optimum": benchmark.optimum,
        "searchers": {name: _record(race, runs) for name, (race, runs) in races.items()},
    }


def _repeats(races: Mapping[str, tuple[Race, Runs]]) -> int:
    return min(len(runs.values) for _, runs in races.values())


def bands(runs: Runs, *, seconds: bool) -> draw.Bands:
    """Mean and band over the repeats, by evaluations or by simulated seconds.

    The band is made to hold the mean, which a few very bad repeats can pull below every quantile.
    """
    if seconds:
        first = runs.seconds[:, 0].max()
        x = np.unique(np.linspace(first, runs.seconds[:, -1].max(), 200))
        values = np.stack([_at_seconds(v, s, x) for v, s in zip(runs.values, runs.seconds, strict=True)])
    else:
        x, values = np.arange(1, runs.values.shape[1] + 1, dtype=np.float64), runs.values
    known = ~np.isnan(values).all(0)
    x, values = x[known], values[:, known]
    mean = np.nanmean(values, axis=0)
    low, high = np.nanquantile(values, BAND, axis=0)
    return draw.Bands(x, mean, np.minimum(low, mean), np.maximum(high, mean))


def _at_seconds(
    values: NDArray[np.float64], seconds: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values[np.maximum(0, np.searchsorted(seconds, x, side="right") - 1)]
    return found


def _record(race: Race, runs: Runs) -> dict[str, Any]:
    curve = bands(runs, seconds=race.protocol.budget_s is not None)
    by_end = runs.values[~np.isnan(runs.values[:, -1]), -1]
    return {
        "searcher": race.searcher,
        "settings": dict(race.settings),
        "repeats": len(runs.values),
        "mean_evaluations": float(runs.counts.mean()),
        "at": {str(mark): {"mean": mean, "sd": sd} for mark, (mean, sd) in runs.table().items()},
        "standard_error": _standard_error(by_end),
        "curve": {name: _short(getattr(curve, name)) for name in ("x", "mean", "low", "high")},
    }


def _standard_error(values: NDArray[np.float64]) -> float | None:
    """Of the mean; None of a single repeat, which says nothing of its own spread."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _front(goals: Goals, race: Race, runs: Runs, exact: NDArray[np.float64], *, title: str) -> Figure:
    first, second = goals.objectives
    done = goals.kept_by(runs.history)
    signs = np.array([1.0 if o.maximize else -1.0 for o in goals.objectives])
    scores, _ = goals.table(done)
    return draw.draw_front(
        scores * signs,
        names=(first.name, second.name),
        maximize=(first.maximize, second.maximize),
        reference=(race.reference[0], race.reference[1]),
        exact=exact * signs,
        title=title,
        subtitle=f"{counted(len(runs.history), 'evaluation')}, {len(done)} of them successful and within all "
        "bounds",
    )


def _cell(value: tuple[float, float]) -> str:
    mean, sd = value
    return f"{100 * mean:.2f} +- {100 * sd:.2f}"
