"""What the sections of a run's report show: its result, how the search came to it, how to do it again."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit
from scipy.stats import hypergeom, pearsonr, rankdata

from nas.errors import NasError, counted
from nas.evaluate import failure_summary
from nas.files.folder import is_file
from nas.files.schemas import EpochRecord
from nas.results.result import baselines_of
from nas.results.run_record import SEARCH
from nas.searchers.goals import Goals
from nas.searchers.method_names import OWN
from nas.show import draw
from nas.show.draw import Bands
from nas.show.draw.search import BASELINE, BEST, axis_places, time_ticks
from nas.show.draw.style import duration
from nas.show.report.run import History, Run
from nas.show.report.section import Drawing, Spot, Tip, Values, metric, signed, stored
from nas.space.graph import Graph, from_dict, skeleton, to_dict
from nas.space.loading import is_plugin
from nas.types import Trial

RANDOM = "random search"
RIVALS = {"random": RANDOM, "default": "the default"}
MOST_DOTS = 1000
"""Trials that are drawn of a longer history."""
_MOST_BARS, _MOST_ROWS = 1500, 30
_LONGEST, _MOST_LINES = 60, 8
"""Characters of a name, metrics and choices that are told of a trial."""
_MOST_CONFIG = 20_000
_MOST_FRAMES, _FRAMES_BYTES = 40, 1_000_000
_ID = "cell-id"
Floats = NDArray[np.float64]


# -- what came out ------------------------------------------------------------------------------------


def summary(run: Run) -> Values:
    """What a run is, what came out of it, or how far it has come."""
    goals = run.search.goals
    objective, best = goals.objectives[0], next(iter(goals.ordered(run.search.longest)), None)
    value = None if best is None else metric(objective.name, objective.value(best.metrics))
    return {
        "finished": run.architecture is not None and bool(run.metrics),
        "found_by": SEARCH if run.compared is None else run.compared.found_by,
        "statements": [] if run.compared is None else run.compared.statements,
        "metrics": run.metrics,
        "score": _interval(run, f"test_{run.told.task.metric}"),
        "gains": {
            words: _interval(run, f"{name}_delta")
            for name, words in RIVALS.items()
            if f"{name}_delta" in run.metrics
        },
        "words": run.told.task.words,
        "facts": facts(run),
        "ended": sum(t.state != "running" for t in run.search.trials),
        "unit": "epochs" if run.is_by_gradients else "trials",
        "best": value and f"{objective.name} is {value}",
    }


def _interval(run: Run, name: str) -> tuple[str, str] | None:
    """A metric of a run and its 95 % interval, in words; None where it was not measured."""
    if name not in run.metrics:
        return None
    share = run.told.task.is_share
    value, *ends = (
        metric(f"{name}{end}", run.metrics.get(f"{name}{end}", run.metrics[name]), is_share=share)
        for end in ("", "_low", "_high")
    )
    return value, f"95 % interval {' to '.join(ends)}"


def facts(run: Run) -> dict[str, str]:
    """Space, task, method and so on, in words."""
    space, task, plan = run.record["space"], run.record["task"], run.record["plan"]
    environment, size = run.told.environment, space.get("size", "?")
    shape = "×".join(map(str, task["image_shape"]))
    images = ", ".join(f"{n} {part}" for part, n in run.told.task.images.items())
    learned = f"{len(task['classes'])} classes" if task["classes"] else run.told.task.problem
    found = {
        "space": f"{space.get('name', '')}, {space.get('decisions', '?')} decisions, {size} architectures",
        "task": f"{task['name']}, {learned}, images {shape} ({images})",
    }
    if run.method:
        how = "by trials on shared weights" if run.shares_weights else "by trained trials"
        if run.is_by_gradients:
            how = "by gradients, guarded" if run.record["config"].get("guard") else "by gradients"
        found["method"] = f"{run.method}, {how}"
        found["goals"] = str(Goals.from_dict(plan["goals"]) if plan.get("goals") else Goals())
    return found | {
        "device": f"{environment.get('device', '?')} ({environment.get('hardware', '?')})",
        "seed": str(run.record["config"].get("seed", 0)),
        "begun": (run.told.begun or "unknown").replace("T", " "),
    }


def draw_cells(graphs: Mapping[str, Graph], caption: str = "") -> list[Drawing]:
    """Each kind of cell as a drawing of its own, so that they can stand below each other.

    Plain values, which all of them have, stand in the first.
    """
    found = [
        to_dict(graph) | ({"values": {}} if place else {}) for place, graph in enumerate(graphs.values())
    ]
    return [_draw_cell(json.dumps(graph), caption) for graph in found]


@lru_cache(maxsize=256)
def _draw_cell(text: str, caption: str) -> Drawing:
    """A cell, kept for a page that is made again and again while a search goes on."""
    graph = from_dict(json.loads(text))
    kind = str(graph.graph["kind"])
    label = f"{caption}: {kind}" if caption else kind
    return Drawing.of(draw.draw_cells({kind: graph}), label, caption=caption)


def cells(run: Run) -> Values | None:
    """The cells of the result."""
    if run.architecture is None or not run.graphs:
        return None
    notation = run.architecture.get("notation") or ""
    return {"drawings": draw_cells(run.graphs), "text": notation, "beside": False}


def network(run: Run) -> Values | None:
    """The whole network at its final size, or as the run has drawn it."""
    label = "the whole network"
    drawings = stored(run.folder, "network.svg", label)
    if run.architecture is not None and run.final is not None:
        with suppress(NasError):  # the space has changed since
            genotype = run.final.genotype(run.architecture["choices"])
            outline = skeleton(run.final.network(genotype, meta=True), run.record["task"]["image_shape"])
            drawings = [Drawing.of(draw.draw_network(outline), label)]
    return {"drawings": drawings} if drawings else None


def evolving(run: Run) -> Values | None:
    """The preferred cell, epoch by epoch or improvement by improvement, as far as the page has room."""
    steps = run.search.done if run.is_by_gradients else run.search.improving(run.search.longest)
    first = run.cells(steps[0].genotype) if len(steps) > 1 else {}
    if not first:
        return None
    size = sum(len(drawing.image) for drawing in draw_cells(first))
    most = max(2, min(len(steps), _MOST_FRAMES, _FRAMES_BYTES // size))
    objective, before, frames = run.search.goals.objectives[0], steps[0].genotype, []
    for place in np.linspace(0, len(steps) - 1, most).round().astype(int).tolist():
        trial = steps[place]
        changes = sum(a != b for a, b in zip(before, trial.genotype, strict=True))
        value = metric(objective.name, objective.value(trial.metrics))
        changed = f", {counted(changes, 'decision')} changed" if place else ""
        label = f"{' '.join(run.called(trial))}: {objective.name} {value}{changed}"
        frames.append({"label": label, "drawings": draw_cells(run.cells(trial.genotype))})
        before = trial.genotype
    return {"frames": frames, "steps": len(steps), "epochs": run.is_by_gradients}


def reproduce(run: Run) -> Values:
    """Settings, versions and fingerprints."""
    record, environment, architecture = run.record, run.told.environment, run.architecture or {}
    file, config = run.folder / "config.toml", ""
    if is_file(file):
        with file.open(errors="replace") as opened:
            config = opened.read(_MOST_CONFIG)
    others = ("device", "hardware", "threads", "commit", "ranks")
    rows = {
        "settings of the space": _listed(record["space"].get("settings")),
        "of the trained network": _listed(record["plan"].get("final_size")),
        "fingerprint of the images": record["task"]["fingerprint"],
        "hash of the space's file": record["space"].get("file_sha256"),
        "hash of the architecture": architecture.get("hash"),
        "genotype": architecture.get("genotype"),
        "commit": environment.get("commit"),
        "versions": _listed({k: v for k, v in environment.items() if k not in others and v is not None}),
        "notes": "; ".join(run.told.task.notes),
    }
    return {
        "command": _command(run),
        "config": config,
        "rows": {k: str(v) for k, v in rows.items() if v},
        "metrics": {
            name: metric(name, value, is_share=run.told.task.is_share) for name, value in run.metrics.items()
        },
    }


def _listed(values: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items()) if isinstance(values, Mapping) else ""


def _command(run: Run) -> str:
    """What repeats the run; code of the user's own has to be named on the command line, too."""
    origin = str(run.record["space"].get("origin") or "")
    if not origin or run.method.startswith(OWN):
        return "# Made in Python: repeat its call of nas.search or nas.retrain with these settings."
    own = f" --space {shlex.quote(origin)}" if is_plugin(origin) else ""
    out = shlex.quote(f"results/{run.name}-again")
    if run.method:
        return f"nas search --config config.toml{own} --out {out}"
    source = shlex.quote(f"{run.name}/architecture.json")
    task = shlex.quote(str(run.record["config"].get("task", run.record["task"]["name"])))
    return f"nas retrain {source} --task {task}{own} --config config.toml --out {out}"


# -- how the search went ------------------------------------------------------------------------------


def anytime(run: Run) -> Values | None:
    """Every trial, the best so far, and random search as it is expected to go."""
    past, by_epochs = run.search, run.is_by_gradients
    told = {"epochs": by_epochs, "broken": bool(past.broken), "all": len(past.trials), "left": 0}
    if not past.trials:
        drawings = stored(run.folder, "search.svg", "the search, as it was drawn when the run finished")
        return told | {"drawings": drawings, "compared": False} if drawings else None
    objective = past.goals.objectives[0]
    shown = list(past.trials) if by_epochs else thinned(past, MOST_DOTS)
    kept = [t for t in run.random.done if t.number not in run.random.broken]
    rivals = baselines_of(kept, past.goals, method=run.method)
    figure = draw.draw_search(
        [objective.with_value(trial) for trial in shown],
        metric=objective.name,
        maximize=objective.maximize,
        baselines={name: [objective.with_value(t) for t in trials] for name, trials in rivals.items()},
        broken=past.broken,
        epochs=by_epochs,
    )
    done = [trial for trial in shown if trial.state == "done"]
    places = axis_places(shown, by_time=by_epochs)
    spots = [
        Spot(places[t.number], objective.value(t.metrics), t.number, " ".join(run.called(t))) for t in done
    ]
    label = f"{objective.name} of every {'epoch' if by_epochs else 'trial'}, and the best so far"
    drawings = [Drawing.of(figure, label, spots=spots)]
    curves = expected(run)
    if len(curves) > 1:
        xlabel = "seconds of evaluation" if by_epochs else "evaluations"
        figure = draw.draw_anytime(curves, xlabel=xlabel, ylabel=objective.name, colors=(BEST, BASELINE))
        label = f"best {objective.name} so far of the search and of random search"
        drawings.append(Drawing.of(figure, label))
    return told | {
        "drawings": drawings,
        "compared": len(curves) > 1,
        "left": len(past.trials) - len(shown),
        "tips": {"trials": {trial.number: tip(run, trial) for trial in done}},
    }


def thinned(past: History, most: int) -> list[Trial]:
    """At most about `most` trials: all that improved on those before or are on the front, then evenly."""
    usable = {t.number for t in past.done}
    trials = [t for t in past.trials if t.state != "done" or t.number in usable]
    if len(trials) <= most:
        return trials
    kept = {t.number for t in [*past.goals.front(past.allowed), *past.improving(past.done)]}
    step = math.ceil(len(trials) / most)
    return [t for place, t in enumerate(trials) if t.number in kept or place % step == 0]


def tip(run: Run, trial: Trial) -> Tip:
    """What is told of a trial: metrics and choices, or how often each was made where they are many."""
    chosen = list(run.search.choices(trial.genotype).items())
    if len(chosen) > _MOST_LINES:
        counts = Counter(option for _, option in chosen)
        chosen = [(option, f"{n} ×") for option, n in counts.most_common()]
    numbers = [(name, metric(name, value)) for name, value in list(trial.metrics.items())[:_MOST_LINES]]
    trained = [("epochs", str(trial.fidelity))] if trial.fidelity and not run.is_by_gradients else []
    took = ("took", duration(trial.cost_s))
    lines = [run.called(trial), *numbers, *trained, took, *chosen[: 2 * _MOST_LINES]]
    return [(name[:_LONGEST], value[:_LONGEST]) for name, value in lines]


def expected(run: Run, name: str = "search") -> dict[str, Bands]:
    """The best so far of the search, and what random search is expected to have found after as much work.

    Without what breaks a constraint. With evaluations on the horizontal axis, or seconds where gradients
    searched.
    """
    curves = {}
    objective = run.search.goals.objectives[0]
    turn = 1.0 if objective.maximize else -1.0
    if run.search.allowed:
        best = turn * np.maximum.accumulate([objective.score(t.metrics) for t in run.search.allowed])
        work = elapsed(run.search.allowed) if run.is_by_gradients else np.arange(1.0, len(best) + 1)
        curves[name] = Bands(work, best, best, best)
    if others := run.random.allowed:
        sizes, *rows = order_statistics(np.array([objective.score(t.metrics) for t in others]))
        middle, low, high = (turn * row for row in rows)
        each = elapsed(others)[-1] / len(others) if run.is_by_gradients else 1.0
        curves[RANDOM] = Bands(each * sizes, middle, np.minimum(low, high), np.maximum(low, high))
    return curves


def elapsed(trials: Sequence[Trial]) -> Floats:
    """[N] seconds of evaluation that each trial and all before it took, ever increasing."""
    return np.cumsum([max(t.cost_s, 1e-9) for t in trials])


def order_statistics(scores: Floats, most: int = 200) -> tuple[Floats, ...]:
    """Of the best of k of these N scores: k, the median, and the 10 and 90 % quantiles, each `[K]`.

    They are drawn without replacement: the best is at most the i-th smallest with the probability that none
    of the N - i larger ones is drawn. most: of the numbers k in 1 to N.
    """
    ordered, count = np.sort(scores), len(scores)
    sizes = np.unique(np.linspace(1, count, min(count, most)).round())
    rows = []
    for k in sizes:
        share = hypergeom.pmf(0, count, np.arange(count)[::-1], k)
        places = (min(int(np.searchsorted(share, q - 1e-9)), count - 1) for q in (0.5, 0.1, 0.9))
        rows.append([ordered[place] for place in places])
    return sizes, *np.array(rows).T


def front(run: Run) -> Values | None:
    """The Pareto front, where there are several objectives."""
    past, objectives = run.search, run.search.goals.objectives
    if len(objectives) < 2 or not past.allowed:
        return None
    first, second = objectives[:2]
    found = (run.architecture or {}).get("choices")
    best = sorted(past.goals.front(past.allowed), key=lambda t: -first.score(t.metrics))
    usable = {t.number for t in past.allowed}
    shown = [t for t in thinned(past, MOST_DOTS) if t.number in usable]
    points = np.array([[first.value(t.metrics), second.value(t.metrics)] for t in shown])
    figure = draw.draw_pareto_front(
        points,
        names=(first.name, second.name),
        maximize=(first.maximize, second.maximize),
        chosen=[place for place, t in enumerate(shown) if past.choices(t.genotype) == found][:1],
    )
    spots = [Spot(x, y, t.number, f"trial {t.number}") for t, (x, y) in zip(shown, points, strict=True)]
    label = f"{first.name} against {second.name}, a dot for each of these trials"
    return {
        "drawings": [Drawing.of(figure, label, spots=spots)],
        "objectives": [(o.name, "larger" if o.maximize else "smaller") for o in objectives],
        "count": len(best),
        "of": len(past.allowed),
        "bounded": bool(past.goals.constraints),
        "rows": [
            (t.number, *(metric(o.name, o.value(t.metrics)) for o in objectives)) for t in best[:_MOST_ROWS]
        ],
        "more": len(best) - _MOST_ROWS,
        "tips": {"trials": {trial.number: tip(run, trial) for trial in shown}},
    }


def alphas(run: Run) -> Values | None:
    """How strong every operation was at the end, and on the way there."""
    found = run.alphas
    if found is None or not len(found.strengths):
        drawings = stored(run.folder, "alphas.svg", "strengths over the search")
    else:
        heat = draw.draw_alpha_heatmap(found.strengths[-1], found.decisions, found.options)
        panels = draw.draw_alphas(found.strengths, decisions=found.decisions, options=found.options)
        drawings = [
            Drawing.of(heat, "heat map of the strengths after the last epoch"),
            Drawing.of(panels, "strengths over the search, a panel for each decision"),
        ]
    return {"drawings": drawings} if drawings else None


def health(run: Run) -> Values | None:
    """The signs of a collapse, epoch by epoch; of a search that has not ended, from its trials."""
    rows = list(run.health)
    if not rows and run.is_by_gradients:
        for place, trial in enumerate(run.search.done, start=1):
            shares = {"all cells": trial.metrics.get("skip_share", 0.0)}
            score = trial.metrics.get(f"val_{run.told.task.metric}", math.nan)
            values = {**trial.metrics, "val_score": score, "epoch": place, "skip_shares": shares}
            rows.append(EpochRecord.model_validate(values))
    if not rows:
        return None
    drawing = Drawing.of(draw.draw_diagnostics(rows), "health of the search by epoch")
    return {"drawings": [drawing], "events": [(row.epoch, event) for row in rows for event in row.events]}


# -- what mattered ------------------------------------------------------------------------------------

_LEAST_TRIALS = 8


def importance(run: Run) -> Values | None:
    """Which operations and which decisions mattered, as far as the history can tell.

    Of the search's trials, or of random search's where those are epochs of a supernet.
    """
    past = run.random if run.is_by_gradients else run.search
    trials, objective = past.longest, past.goals.objectives[0]
    values = np.array([objective.value(t.metrics) for t in trials])
    if len(trials) < _LEAST_TRIALS or not values.std() > 0:
        return None
    scale, unit = (100.0, "points") if objective.name.endswith("acc") else (1.0, objective.name)
    return {
        "random": past is run.random,
        "count": len(trials),
        "objective": objective.name,
        "unit": unit,
        "operations": operations(past, trials, values),
        "decisions": decisions(past, trials, values, scale)[:_MOST_ROWS],
        "left": len(past.decisions) - _MOST_ROWS,
    }


def operations(past: History, trials: Sequence[Trial], values: Floats) -> list[dict[str, Any]]:
    """For each option that more than one decision offers: Spearman's ρ of how often it is used and the value.

    ρ is Pearson's correlation of the ranks, and its 95 % interval Fisher's.
    """
    offered = Counter(option for d in past.decisions for option in set(d.options))
    chosen, ranks = np.array([t.genotype for t in trials]), rankdata(values)
    rows = []
    for name in sorted(option for option, times in offered.items() if times > 1):
        places = [(i, d.options.index(name)) for i, d in enumerate(past.decisions) if name in d.options]
        uses = sum((chosen[:, i] == option).astype(int) for i, option in places)
        if uses.std() > 0:
            found = pearsonr(rankdata(uses), ranks)
            (low, high), rho = found.confidence_interval(), float(found.statistic)
            text = f"{signed(rho)} ({signed(low)} to {signed(high)})"
            rows.append({"name": name, "rho": rho, "low": float(low), "high": float(high), "text": text})
    return sorted(rows, key=lambda row: -row["rho"])


def decisions(past: History, trials: Sequence[Trial], values: Floats, scale: float) -> list[dict[str, Any]]:
    """For each decision ε², and the options with the highest and the lowest mean; the most important first.

    ε² = (S_B - (K - 1) s²) / S_T, not below 0: the share of the values' variance that K options explain, less
    what they would by chance (Kelley 1935); S_B and S_T are the sums of squares between options and in all,
    s² is the mean square within options.
    """
    chosen = np.array([t.genotype for t in trials])
    rows = []
    for place, decision in enumerate(past.decisions):
        groups = {o: values[chosen[:, place] == o] for o in sorted(set(chosen[:, place].tolist()))}
        within, spare = sum(g.var() * len(g) for g in groups.values()), len(values) - len(groups)
        if len(groups) < 2 or spare < 1:
            continue
        total = values.var() * len(values)
        share = max(0.0, (total - within - (len(groups) - 1) * within / spare) / total)
        order = sorted(groups, key=lambda o: -groups[o].mean())
        best, worst = (
            (decision.options[o], _effect(scale * groups[o], scale * values[chosen[:, place] != o]))
            for o in (order[0], order[-1])
        )
        rows.append({"name": decision.name, "share": share, "best": best, "worst": worst})
    return sorted(rows, key=lambda row: -row["share"])


def _effect(own: Floats, other: Floats) -> str:
    """Mean with an option less mean without it, ± half of its 95 % interval (Welch 1947)."""
    difference = signed(float(own.mean() - other.mean()))
    if min(len(own), len(other)) < 2:
        return f"{difference} (one trial)"
    a, b = own.var(ddof=1) / len(own), other.var(ddof=1) / len(other)
    degrees = (a + b) ** 2 / (a**2 / (len(own) - 1) + b**2 / (len(other) - 1)) if a + b else np.inf
    return f"{difference} ± {stdtrit(degrees, 0.975) * np.sqrt(a + b):.2f}"


# -- who did it, what failed, what it cost ------------------------------------------------------------


def failures(run: Run) -> Values | None:
    """How many trials failed, of what, and what helps."""
    lost = [t for t in run.search.trials if t.state == "failed"]
    rows = []
    for reason, number in failure_summary.count(lost).items():
        usual = failure_summary.usual([t for t in lost if failure_summary.code(t) == reason])
        rows.append((reason, number, usual, failure_summary.ADVICE.get(reason, "")))
    return {"rows": rows, "count": len(lost), "of": len(run.search.trials)} if lost else None


def timeline(run: Run) -> Values | None:
    """A bar for each trial, in the row of whoever had it; places and lengths are shares of the whole time."""
    bars = [
        (kind, past.goals, trial, past.work[trial.number])
        for kind, past in (("search", run.search), ("random", run.random))
        for trial in past.trials
    ]
    bars.sort(key=lambda bar: bar[3].begun_s)
    left, bars = max(0, len(bars) - _MOST_BARS), bars[-_MOST_BARS:]
    if not bars:
        return None
    start, now = bars[0][3].begun_s, max(work.ended_s or work.begun_s for *_, work in bars)
    span_s = max(now - start, 1e-3)
    workers = list(dict.fromkeys(work.worker for *_, work in bars))
    shown, tips = [], {}
    for place, (kind, goals, trial, work) in enumerate(bars):
        called = run.called(trial) if kind == "search" else ("trial of random search", str(trial.number))
        tips[place] = [called, *_ended(trial, goals), ("worker", work.worker)]
        shown.append(
            {
                "kind": kind if trial.state == "done" else trial.state,
                "row": workers.index(work.worker),
                "begun": (work.begun_s - start) / span_s,
                "length": ((now if work.ended_s is None else work.ended_s) - work.begun_s) / span_s,
                "label": " ".join(called),
            }
        )
    return {
        "bars": shown,
        "workers": workers,
        "ticks": [(at / span_s, label) for at, label in time_ticks(span_s, most=5)],
        "began": datetime.fromtimestamp(start).strftime("%Y-%m-%d %H:%M:%S"),
        "kinds": {bar["kind"] for bar in shown},
        "left": left,
        "tips": {"timeline": tips},
    }


def _ended(trial: Trial, goals: Goals) -> Tip:
    """The value, time and reason of a trial, as far as it has them."""
    objective = goals.objectives[0]
    known = trial.state == "done" and set(objective.metrics) <= trial.metrics.keys()
    return [
        *([(objective.name, metric(objective.name, objective.value(trial.metrics)))] if known else []),
        *([("took", duration(trial.cost_s))] if trial.cost_s else []),
        *([("failed", trial.reason[:120])] if trial.reason else []),
    ]


def cost(run: Run, watts: float | None) -> Values | None:
    """Device seconds of each phase, the sum over workers and ranks; before the end, of finished trials.

    watts: of a device while it works, for an estimate of energy.
    """
    ranks = run.told.environment.get("ranks")
    times, m = (ranks if isinstance(ranks, int) and ranks > 0 else 1), run.metrics
    phases = {
        "search": times * m.get("search_seconds", sum(t.cost_s for t in run.search.trials)),
        "random search": sum(t.cost_s for t in run.random.trials),
        "training the best again": m.get("rerank_seconds", 0.0),
        "training the winner": times * m.get("retrain_seconds", 0.0),
    }
    spent = {name: seconds for name, seconds in phases.items() if seconds > 0}
    return {"phases": spent, "total": sum(spent.values()), "watts": watts} if spent else None
