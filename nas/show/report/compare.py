"""Several runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nas.show import draw
from nas.show.draw import Bands
from nas.show.report.architecture import cells
from nas.show.report.curves import RANDOM, expected
from nas.show.report.run import Run
from nas.show.report.section import Drawing, Section, inline, metric, setting
from nas.show.report.summary import facts

_MOST_CURVES = 8
_MOST_CHANGES = 60
_TOLD = (
    "storage",
    "executor",
    "storage_patience",
    "objective",
    "constraint",
    "goals.objectives",
    "goals.constraints",
)
"""Settings that say nothing of the outcome, or stand in the table in words."""
_RETRAINED = (
    *("final", "full_size", "preset", "retrain", "space_settings", "final_settings", "deterministic"),
    *("execution", "graph", "exclude"),
)
"""The settings of a retraining."""


def compare(runs: Sequence[Run], names: Sequence[str]) -> list[Section]:
    """What differs between runs in settings and outcome. names: of the runs, no two alike."""
    sections = [_settings(runs, names), _metrics(runs, names), _curves(runs, names), _cells(runs, names)]
    return [section for section in sections if section is not None]


def _settings(runs: Sequence[Run], names: Sequence[str]) -> Section:
    flat = [_used(run) for run in runs]
    told = [facts(run) for run in runs]
    everywhere = dict.fromkeys(key for table in told for key in table)
    rows = [(key, [table.get(key, "–") for table in told]) for key in everywhere]
    keys = sorted({key for table in flat for key in table} - set(_TOLD))
    differing = [(key, [table.get(key) for table in flat]) for key in keys if key not in everywhere]
    rows += [(key, [*map(setting, found)]) for key, found in differing if len(set(map(str, found))) > 1]
    return Section(
        "settings",
        "Settings",
        "What the runs are, and every setting in which they differ, as asked or as the preset resolved it; "
        "highlighted rows differ.",
        template="table",
        values={
            "head": list(names),
            "rows": _marked(rows[:_MOST_CHANGES]),
            "more": max(0, len(rows) - _MOST_CHANGES),
        },
    )


def _used(run: Run) -> dict[str, object]:
    """The settings that a run had any use for: its record holds those of other kinds of runs, too."""
    plan, config = run.record["plan"], run.record["config"]
    if not run.method:
        plan, config = ({k: v for k, v in table.items() if k in _RETRAINED} for table in (plan, config))
    elif run.is_by_gradients:
        plan = {k: v for k, v in plan.items() if k not in ("searcher", "shared", "sharing")}
    else:
        idle = ("search",) if run.shares_weights else ("search", "shared", "sharing")
        plan = {k: v for k, v in plan.items() if k not in idle}
    return _flat(plan, "") | _flat(config, "")


def _metrics(runs: Sequence[Run], names: Sequence[str]) -> Section | None:
    keys = dict.fromkeys(key for run in runs for key in run.metrics)
    rows = [
        (key.replace("_", " "), [_value(run.metrics, key) for run in runs])
        for key in keys
        if not key.endswith(("_low", "_high"))
    ]
    if not rows:
        return None
    return Section(
        "metrics",
        "Outcomes",
        "Each with its 95 % interval where there is one. Intervals that overlap widely mean that the runs "
        "may differ by chance alone; one run of each setting says nothing of the spread over seeds.",
        template="table",
        values={"head": list(names), "rows": _marked(rows, mark=False), "more": 0},
    )


def _curves(runs: Sequence[Run], names: Sequence[str]) -> Section | None:
    objectives = {run.search.goals.objectives[0].name for run in runs if run.search.allowed}
    kinds = {run.is_by_gradients for run in runs if run.search.allowed}
    if len(objectives) != 1:
        return None
    curves: dict[str, Bands] = {}
    for run, name in zip(runs, names, strict=True):
        for label, band in expected(run, name).items():
            if label != RANDOM:
                curves[label] = _timed(run, band) if len(kinds) > 1 else band
    xlabel = "evaluations" if kinds == {False} else "seconds of evaluation"
    shown = dict(list(curves.items())[:_MOST_CURVES])
    objective = objectives.pop()
    figure = draw.draw_anytime(shown, xlabel=xlabel, ylabel=objective)
    label = f"best {objective} so far of each run"
    left = f" The first {_MOST_CURVES} of {len(curves)} runs are drawn." if len(curves) > len(shown) else ""
    mixed = " Supernets and networks trained alone are not the same thing." if len(kinds) > 1 else ""
    return Section(
        "curves",
        "Anytime curves",
        f"The best {objective} found so far over {xlabel}: a curve further up or to the left got there with "
        f"less work.{mixed}{left}",
        drawings=[Drawing(label, label, svg=inline(figure, name="curves", label=label), wide=True)],
    )


def _timed(run: Run, band: Bands) -> Bands:
    """A curve over seconds, for runs whose evaluations are not of one kind."""
    seconds = np.cumsum([max(t.cost_s, 1e-9) for t in run.search.allowed])
    return Bands(seconds, band.mean, band.low, band.high)


def _cells(runs: Sequence[Run], names: Sequence[str]) -> Section | None:
    found = [
        Drawing(f"{name}: {drawing.label}", name, svg=drawing.svg)
        for place, (run, name) in enumerate(zip(runs, names, strict=True))
        for drawing in cells(run.graphs, f"run{place}")
    ]
    if not found:
        return None
    reading = "The cells that each run found; equal operations have equal colours."
    return Section("cells", "Found cells", reading, template="beside", drawings=found)


def _value(metrics: Mapping[str, float], key: str) -> str:
    if key not in metrics:
        return "–"
    value = metric(key, metrics[key])
    ends = [metrics.get(f"{key}_{end}") for end in ("low", "high")]
    if None in ends:
        return value
    low, high = (metric(key, end) for end in ends if end is not None)
    return f"{value} ({low} to {high})"


def _marked(rows: Sequence[tuple[str, list[str]]], *, mark: bool = True) -> list[Mapping[str, object]]:
    return [{"name": name, "cells": row, "differs": mark and len(set(row)) > 1} for name, row in rows]


def _flat(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}".lstrip(".")).items()}
