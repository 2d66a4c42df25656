"""Searchers compared on one table: replays with one protocol, goals and seeds, as JSON and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import ConfigError, counted
from nas.evaluate.benchmarks import Benchmark, load_benchmark
from nas.evaluate.replay import UNBOUNDED, Replay, Runs, check_replay, exact_front, reference_point
from nas.files.atomic import write_json
from nas.files.folder import prepare_folder
from nas.searchers.goals import Goals
from nas.show import draw
from nas.types import Objective

CURVES = 8
ONE, SEVERAL = ("random", "evolution", "local", "guided"), ("random", "nsga2", "guided")
"""What is compared unless searchers are named: for one objective, for several."""


def plan_comparison(
    name: str,
    searchers: Sequence[str] = (),
    *,
    trials: int | None = None,
    budget_s: float | None = None,
    epochs: int | None = None,
    dataset: str | None = None,
    folder: Path | None = None,
    goals_by: Callable[[Objective], Goals] = lambda signal: Goals((signal,)),
    reference: str | None = None,
    settings: Mapping[str, object] | None = None,
) -> tuple[Benchmark, list[Replay]]:
    """The table and one replay for each searcher.

    trials: evaluations of each search, 100 unless given; budget_s: simulated seconds instead.
    epochs: of the training that selection sees; the longest, or with a budget the shortest, unless given.
    goals_by: what is searched for, given the table's own signal, which it is by default.
    reference: see `reference_point`.
    settings: of the searchers; a table named like one of them is for it alone.

    Raises:
        ConfigError: for anything that no replay could be run with.
    """
    if budget_s is not None and trials is not None:
        raise ConfigError("give --trials or --time-budget, not both")
    table = load_benchmark(name, dataset=dataset, folder=folder)
    fidelity = table.fidelities[0 if budget_s is not None else -1] if epochs is None else epochs
    if fidelity not in table.fidelities:
        raise ConfigError(f"{name} knows {table.fidelities} epochs, not {fidelity}")
    goals = goals_by(Objective(table.signal))
    point: tuple[float, ...] = ()
    if len(goals.objectives) > 1:
        if reference is None:
            raise ConfigError('several objectives need --reference, e.g. --reference "0.15,1.5m"')
        point = reference_point(reference, table, goals, fidelity)
    elif reference is not None:
        raise ConfigError("--reference is for several objectives; remove it")
    evaluations = (100 if budget_s is None else UNBOUNDED) if trials is None else trials
    labels = list(dict.fromkeys(searchers or (ONE if len(goals.objectives) == 1 else SEVERAL)))
    if len(labels) > CURVES:
        raise ConfigError(f"got {len(labels)} searchers, but a picture has at most {CURVES} curves")
    given = settings or {}
    own = {key: value for key, value in given.items() if isinstance(value, Mapping)}
    common = {key: value for key, value in given.items() if key not in own}
    for key in own.keys() - set(labels):
        raise ConfigError(f"settings for {key!r} are given, but only {', '.join(labels)} are compared")
    replays = [
        Replay(
            name,
            label,
            goals,
            fidelity,
            evaluations,
            budget_s,
            settings=tuple({**common, **own.get(label, {})}.items()),
            dataset=dataset,
            folder=folder,
            reference=point,
        )
        for label in labels
    ]
    for replay in replays:
        check_replay(replay)
    return table, replays


BAND = (0.1, 0.9)
"""Quantiles of the repeats between which a curve's band lies."""


def write_comparison(
    folder: Path, benchmark: Benchmark, replays: Mapping[str, tuple[Replay, Runs]]
) -> list[Path]:
    """benchmark.json and anytime.svg/.png, with two objectives front.svg/.png too; returns their paths."""
    folder = prepare_folder(folder)
    replay = next(iter(replays.values()))[0]
    title = f"{benchmark.name} {replay.dataset}" if replay.dataset is not None else benchmark.name
    write_json(folder / "benchmark.json", to_dict(benchmark, replays))
    written = [folder / "benchmark.json", folder / "anytime.svg", folder / "anytime.png"]
    several = len(replay.goals.objectives) > 1
    repeats = min(len(runs.values) for _, runs in replays.values())
    figure = draw.draw_anytime(
        {name: bands(runs, seconds=replay.budget_s is not None) for name, (_, runs) in replays.items()},
        xlabel="simulated seconds" if replay.budget_s is not None else "evaluations",
        ylabel="share of the exact hypervolume" if several else benchmark.report,
        title=f"{title}: mean and {BAND[0]:.0%} to {BAND[1]:.0%} of {repeats} repeats",
        subtitle=describe(benchmark, replay),
        optimum=1.0 if several else benchmark.optimum,
    )
    draw.save(figure, *written[1:])
    if len(replay.goals.objectives) == 2:
        name, (replay, runs) = list(replays.items())[-1]
        first, second = replay.goals.objectives
        signs = np.array([1.0 if o.maximize else -1.0 for o in (first, second)])
        scores, _ = replay.goals.table(replay.goals.kept_by(runs.history))
        figure = draw.draw_pareto_front(
            scores * signs,
            names=(first.name, second.name),
            maximize=(first.maximize, second.maximize),
            exact=exact_front(benchmark, replay.goals, replay.fidelity) * signs,
            title=f"{title}: {name}, one repeat",
            subtitle=f"{counted(len(runs.history), 'evaluation')}, {len(scores)} of them within all bounds",
        )
        written += [folder / "front.svg", folder / "front.png"]
        draw.save(figure, *written[3:])
    return written


def describe(benchmark: Benchmark, replay: Replay) -> str:
    """What was selected by what, in one line."""
    if len(replay.goals.objectives) > 1:
        return f"{replay.goals}, {counted(replay.fidelity, 'epoch')}"
    if replay.goals != Goals((Objective(benchmark.signal),)):
        wanted = f"selected by {replay.goals} after {counted(replay.fidelity, 'epoch')}"
        return f"{wanted}, reported by {benchmark.report}"
    return f"{benchmark.note} ({counted(replay.fidelity, 'epoch')} for selection)"


def lines(replays: Mapping[str, tuple[Replay, Runs]], benchmark: Benchmark) -> list[str]:
    """The table of means and standard deviations, in percent, as text."""
    replay = next(iter(replays.values()))[0]
    tables = {name: runs.table() for name, (_, runs) in replays.items()}
    if replay.budget_s is not None:
        ends = {name: table[max(table)] for name, table in tables.items()}
        head = f"{'searcher':20}{'evaluations':>12}{'at the end':>18}"
        rows = [f"{name:20}{replays[name][1].counts.mean():>12.1f}{_cell(ends[name]):>18}" for name in ends]
        return [describe(benchmark, replay), head, *rows]
    marks = sorted({mark for table in tables.values() for mark in table})
    head = f"{'searcher':20}" + "".join(f"{mark:>16}" for mark in marks)
    rows = [
        f"{name:20}" + "".join(f"{_cell(table[mark]) if mark in table else '':>16}" for mark in marks)
        for name, table in tables.items()
    ]
    return [describe(benchmark, replay), head, *rows]


def to_dict(benchmark: Benchmark, replays: Mapping[str, tuple[Replay, Runs]]) -> dict[str, Any]:
    """Plain values for JSON: settings, means and standard deviations at the marks, curves with bands."""
    replay = next(iter(replays.values()))[0]
    return {
        "benchmark": benchmark.name,
        "dataset": replay.dataset,
        "description": describe(benchmark, replay),
        "goals": replay.goals.to_dict(),
        "reference": list(replay.reference),
        "fidelity": replay.fidelity,
        "trials": replay.trials if replay.budget_s is None else None,
        "time_budget_s": replay.budget_s,
        "seed": replay.seed,
        "optimum": benchmark.optimum,
        "searchers": {name: _record(replay, runs) for name, (replay, runs) in replays.items()},
    }


def bands(runs: Runs, *, seconds: bool) -> draw.Bands:
    """Mean and band over the repeats, by evaluations or by simulated seconds.

    The band is made to hold the mean, which a few very bad repeats can pull below every quantile.
    """
    if seconds:
        x = np.unique(np.linspace(runs.seconds[:, 0].max(), runs.seconds[:, -1].max(), 200))
        at = [np.maximum(0, np.searchsorted(row, x, side="right") - 1) for row in runs.seconds]
        values = np.take_along_axis(runs.values, np.stack(at), axis=1)
    else:
        x, values = np.arange(1, runs.values.shape[1] + 1, dtype=np.float64), runs.values
    known = ~np.isnan(values).all(0)
    x, values = x[known], values[:, known]
    mean = np.nanmean(values, axis=0)
    low, high = np.nanquantile(values, BAND, axis=0)
    return draw.Bands(x, mean, np.minimum(low, mean), np.maximum(high, mean))


def _record(replay: Replay, runs: Runs) -> dict[str, Any]:
    curve = bands(runs, seconds=replay.budget_s is not None)
    ends = runs.values[~np.isnan(runs.values[:, -1]), -1]
    return {
        "searcher": replay.searcher,
        "settings": dict(replay.settings),
        "repeats": len(runs.values),
        "mean_evaluations": float(runs.counts.mean()),
        "at": {str(mark): {"mean": mean, "sd": sd} for mark, (mean, sd) in runs.table().items()},
        # A single repeat says nothing of its own spread.
        "standard_error": float(np.std(ends, ddof=1) / np.sqrt(len(ends))) if len(ends) > 1 else None,
        "curve": {
            name: [float(f"{value:.6g}") for value in getattr(curve, name)]
            for name in ("x", "mean", "low", "high")
        },
    }


def _cell(value: tuple[float, float]) -> str:
    mean, sd = value
    return f"{100 * mean:.2f} +- {100 * sd:.2f}"
