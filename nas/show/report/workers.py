"""What workers did, when, and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nas.evaluate import failure_summary
from nas.show.draw.curves import time_ticks
from nas.show.report.run import Past, Run, Work
from nas.show.report.section import Section, duration, metric
from nas.types import Trial

_MOST_BARS = 1500
_ROW, _LEFT, _INNER = 26, 190, 800
"""Pixels: the height of a row, where the bars begin, and the width of all of them."""
_TICKS, _SHORTEST_S = 5, 1e-3
_KINDS = ("search", "random", "failed", "running")


def failed(run: Run) -> Section | None:
    """How many trials failed, of what, and what helps."""
    lost = [t for t in run.search.trials if t.state == "failed"]
    if not lost:
        return None
    rows = [
        {
            "reason": reason,
            "number": number,
            "usual": failure_summary.usual([t for t in lost if failure_summary.code(t) == reason]),
            "advice": failure_summary.ADVICE.get(reason, ""),
        }
        for reason, number in failure_summary.count(lost).items()
    ]
    reading = (
        f"{len(lost)} of {len(run.search.trials)} trials of the search gave no value, by reason, the "
        "commonest first, each with its usual message and what helps against it."
    )
    return Section("failures", "Failures", reading, template="failures", values={"rows": rows})


def timeline(run: Run) -> Section | None:
    """A bar for each trial, in the row of whoever had it."""
    bars = [
        (kind, past, trial, work)
        for kind, past in (("search", run.search), ("random", run.random))
        for trial, work in zip(past.trials, past.work, strict=True)
    ]
    left = max(0, len(bars) - _MOST_BARS)
    bars = sorted(bars, key=lambda bar: bar[3].begun_s)[-_MOST_BARS:]
    if not bars:
        return None
    ends = [work.ended_s for *_, work in bars if work.ended_s is not None]
    now = max([*ends, *(work.begun_s for *_, work in bars)])
    start = min(work.begun_s for *_, work in bars)
    span = max(now - start, _SHORTEST_S)
    workers = list(dict.fromkeys(work.worker for *_, work in bars))
    rects = [
        _bar(kind, trial, work, start, now)
        | {"y": workers.index(work.worker) * _ROW, "tip": place, "label": " ".join(_called(run, kind, trial))}
        for place, (kind, _, trial, work) in enumerate(bars)
    ]
    return Section(
        "timeline",
        "Timeline of trials",
        "Each bar is a trial, as long as its evaluation took, in the row of its worker, or of the job itself "
        "where no worker could help; gaps are time spent on proposals, waiting or other phases. Times are "
        "those of the workers' own clocks"
        f"{f'; {left} earlier trials are left out' if left else ''}.",
        template="timeline",
        values={
            "bars": rects,
            "workers": [(name, place * _ROW) for place, name in enumerate(workers)],
            "ticks": [(_LEFT + _INNER * at / span, label) for at, label in time_ticks(span, most=_TICKS)],
            "height": len(workers) * _ROW,
            "left": _LEFT,
            "inner": _INNER,
            "row": _ROW,
            "began": datetime.fromtimestamp(start).strftime("%Y-%m-%d %H:%M:%S"),
            "kinds": [kind for kind in _KINDS if any(rect["kind"] == kind for rect in rects)],
        },
        tips={"timeline": {place: _tip(run, *bar) for place, bar in enumerate(bars)}},
    )


def _bar(kind: str, trial: Trial, work: Work, start: float, now: float) -> dict[str, object]:
    ended, span = now if work.ended_s is None else work.ended_s, max(now - start, _SHORTEST_S)
    width = max(1.5, _INNER * (ended - work.begun_s) / span)
    state = trial.state if trial.state != "done" else kind
    x = _LEFT + _INNER * (work.begun_s - start) / span
    return {"x": f"{x:.1f}", "width": f"{width:.1f}", "kind": state}


def _called(run: Run, kind: str, trial: Trial) -> tuple[str, str]:
    return run.called(trial) if kind == "search" else ("trial of random search", str(trial.number))


def _tip(run: Run, kind: str, past: Past, trial: Trial, work: Work) -> Sequence[tuple[str, str]]:
    objective = past.goals.objectives[0]
    known = trial.state == "done" and set(objective.metrics) <= trial.metrics.keys()
    value = [(objective.name, metric(objective.name, objective.value(trial.metrics)))] if known else []
    reason = [("failed", trial.reason[:120])] if trial.reason else []
    took = [("took", duration(trial.cost_s))] if trial.cost_s else []
    return [_called(run, kind, trial), *value, *took, ("worker", work.worker), *reason]


GPU_WATTS: Mapping[str, float] = {
    "H200": 700,
    "H100 PCIe": 350,
    "H100": 700,
    "B200": 1000,
    "A100": 400,
    "V100": 300,
    "L40": 300,
    "L4": 72,
    "T4": 70,
    "A10": 150,
    "A6000": 300,
    "4090": 450,
    "3090": 350,
}
"""What makers name as the most that a GPU draws, by a part of its name; the first that fits counts."""
_UNKNOWN_GPU_W, _THREAD_W = 300.0, 10.0


def assumed_watts(environment: Mapping[str, Any]) -> tuple[float, str]:
    """The power that a device is assumed to draw while it works, and why."""
    device, hardware = str(environment.get("device", "")), str(environment.get("hardware", ""))
    if not device.startswith("cuda"):
        found = environment.get("threads")
        threads = found if isinstance(found, int) and found > 0 else 1
        many = "the CPU's thread" if threads == 1 else f"each of {threads} CPU threads"
        return threads * _THREAD_W, f"{_THREAD_W:.0f} W for {many}, typical of a server"
    for name, watts in GPU_WATTS.items():
        if name in hardware:
            return float(watts), f"the most that {hardware} may draw by its maker"
    return _UNKNOWN_GPU_W, f"a usual value, since {hardware} is not known here"


def phases(run: Run) -> dict[str, float]:
    """Device seconds by phase; of a run that has not ended, those of its finished trials."""
    ranks = run.told.environment.get("ranks", 1)
    times = ranks if isinstance(ranks, int) and ranks > 0 else 1
    trials = sum(t.cost_s for t in run.search.trials)
    found = {
        "search": times * run.metrics.get("search_seconds", trials),
        "random search": sum(t.cost_s for t in run.random.trials),
        "training the best again": run.metrics.get("rerank_seconds", 0.0),
        "training the winner": times * run.metrics.get("retrain_seconds", 0.0),
    }
    return {name: seconds for name, seconds in found.items() if seconds > 0}


def energy(run: Run, watts: float | None = None) -> Section | None:
    """Seconds and watt hours of each phase.

    watts: of a device while it works, in place of what is assumed.
    """
    spent = phases(run)
    if not spent:
        return None
    assumed, why = assumed_watts(run.told.environment)
    power = assumed if watts is None else watts
    total = sum(spent.values())
    unit, joules = _unit(total * power)
    rows = [
        (name, duration(s), _energy(s * power / joules, unit), f"{100 * s / total:.0f} %")
        for name, s in spent.items()
    ]
    reason = "as given with --watts" if watts is not None else why
    return Section(
        "energy",
        "Cost and energy",
        "Device time is the sum over workers and ranks. Energy is no measurement: it is device time × an "
        f"assumed power of {power:g} W a device ({reason}), without memory, cooling and the rest of the "
        "machine. Give the real power with nas report RUN --watts W.",
        template="energy",
        values={
            "rows": rows,
            "total": (duration(total), _energy(total * power / joules, unit)),
            "hours": f"{total / 3600:.3g}",
        },
    )


def _unit(joules: float) -> tuple[str, float]:
    """The unit for a whole table, by its largest number, and its joules."""
    units = (("kWh", 3.6e6), ("Wh", 3600.0), ("J", 1.0))
    return next((unit for unit in units if joules >= unit[1]), units[-1])


def _energy(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
