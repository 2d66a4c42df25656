"""What workers did, when, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from nas.evaluate import failure_summary
from nas.show.draw.time_axis import time_ticks
from nas.show.report.history import Past, Work
from nas.show.report.run import Run
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
