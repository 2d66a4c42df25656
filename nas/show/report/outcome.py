"""What came out of a run: its figures, cells and network, how the search came to them, how to do it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache

import numpy as np
from markupsafe import Markup

from nas.errors import NasError, counted
from nas.files.folder import is_file
from nas.files.schemas import EpochRecord
from nas.results.run_record import SEARCH
from nas.searchers.goals import Goals
from nas.searchers.method_names import OWN
from nas.show import draw
from nas.show.draw.layout import effort
from nas.show.report.run import Run
from nas.show.report.section import Drawing, Values, inline, metric, stored
from nas.space.graph import Graph, from_dict, skeleton, to_dict
from nas.space.loading import is_plugin
from nas.types import Trial

_MOST_CONFIG = 20_000
_MOST_FRAMES, _FRAMES_BYTES = 40, 1_000_000
_FRAMES_EFFORT = 10_000
"""Of `nas.show.draw.layout.effort` for all frames: about twenty seconds on one core."""
_ID = "cell-id"


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
        "facts": facts(run),
        "ended": sum(t.state != "running" for t in run.search.trials),
        "unit": "epochs" if run.is_by_gradients else "trials",
        "best": value and f"{objective.name} is {value}",
    }


def facts(run: Run) -> dict[str, str]:
    """Space, task, method and so on, in words."""
    space, task, plan = run.record["space"], run.record["task"], run.record["plan"]
    environment, size = run.told.environment, space.get("size", "?")
    shape = "×".join(map(str, task["image_shape"]))
    images = ", ".join(f"{n} {part}" for part, n in run.told.task.images.items())
    found = {
        "space": f"{space.get('name', '')}, {space.get('decisions', '?')} decisions, {size} architectures",
        "task": f"{task['name']}, {len(task['classes'])} classes, images {shape} ({images})",
    }
    if run.method:
        trials = "trials on shared weights" if run.shares_weights else "trained trials"
        found["method"] = f"{run.method}, by {'gradients' if run.is_by_gradients else trials}"
        found["goals"] = str(Goals.from_dict(plan["goals"]) if plan.get("goals") else Goals())
    return found | {
        "device": f"{environment.get('device', '?')} ({environment.get('hardware', '?')})",
        "seed": str(run.record["config"].get("seed", 0)),
        "begun": (run.told.begun or "unknown").replace("T", " "),
    }


def draw_cells(graphs: Mapping[str, Graph], name: str, caption: str = "") -> list[Drawing]:
    """Each kind of cell as a drawing of its own, so that they can stand below each other.

    Plain values, which all of them have, stand in the first. name: what ids in them begin with.
    """
    drawings = []
    for place, (kind, graph) in enumerate(graphs.items()):
        data = to_dict(graph) | ({"values": {}} if place else {})
        svg = Markup(_cell(json.dumps(data)).replace(_ID, f"{name}-{place}"))  # nosec B704
        drawings.append(Drawing(f"{caption}: {kind}" if caption else kind, caption, svg))
    return drawings


@lru_cache(maxsize=256)
def _cell(text: str) -> str:
    """A cell as SVG, kept for a page that is made again and again while a search goes on."""
    graph = from_dict(json.loads(text))
    kind = str(graph.graph["kind"])
    return str(inline(draw.draw_cells({kind: graph}), name=_ID, label=f"the cell {kind}"))


def cells(run: Run) -> Values | None:
    """The cells of the result."""
    if run.architecture is None or not run.graphs:
        return None
    notation = run.architecture.get("notation") or ""
    return {"drawings": draw_cells(run.graphs, "found"), "text": notation, "beside": False}


def network(run: Run) -> Values | None:
    """The whole network at its final size, or as the run has drawn it."""
    label = "the whole network"
    drawings = stored(run.folder, "network.svg", label)
    if run.architecture is not None and run.final is not None:
        with suppress(NasError):  # the space has changed since
            genotype = run.final.genotype(run.architecture["choices"])
            outline = skeleton(run.final.network(genotype, meta=True), run.record["task"]["image_shape"])
            drawings = [Drawing.of(draw.draw_network(outline), "network", label)]
    return {"drawings": drawings} if drawings else None


def evolving(run: Run) -> Values | None:
    """The preferred cell, epoch by epoch or improvement by improvement."""
    steps = run.search.done if run.is_by_gradients else run.search.improving(run.search.longest)
    frames = _frames(run, steps)
    return {"frames": frames, "steps": len(steps), "epochs": run.is_by_gradients} if frames else None


def _frames(run: Run, steps: Sequence[Trial]) -> list[Mapping[str, object]]:
    """As many of two or more steps as the page has room for, the first and the last always among them."""
    first = run.cells(steps[0].genotype) if len(steps) > 1 else {}
    if not first:
        return []
    size = sum(len(drawing.svg) for drawing in draw_cells(first, "frame0"))
    work = sum(effort(graph) for graph in first.values())
    most = min(len(steps), _MOST_FRAMES, _FRAMES_BYTES // size, _FRAMES_EFFORT // max(1, work))
    objective = run.search.goals.objectives[0]
    frames: list[Mapping[str, object]] = []
    before = steps[0].genotype
    for place in np.linspace(0, len(steps) - 1, max(2, most)).round().astype(int).tolist():
        trial = steps[place]
        changes = sum(a != b for a, b in zip(before, trial.genotype, strict=True))
        value = metric(objective.name, objective.value(trial.metrics))
        changed = f", {counted(changes, 'decision')} changed" if place else ""
        label = f"{' '.join(run.called(trial))}: {objective.name} {value}{changed}"
        frames.append({"label": label, "drawings": draw_cells(run.cells(trial.genotype), f"frame{place}")})
        before = trial.genotype
    return frames


def alphas(run: Run) -> Values | None:
    """How strong every operation was at the end, and on the way there."""
    found = run.alphas
    if found is None or not len(found.strengths):
        drawings = stored(run.folder, "alphas.svg", "strengths over the search")
    else:
        heat = draw.draw_alpha_heatmap(found.strengths[-1], found.decisions, found.options)
        panels = draw.draw_alphas(found.strengths, decisions=found.decisions, options=found.options)
        drawings = [
            Drawing.of(heat, "heat", "heat map of the strengths after the last epoch"),
            Drawing.of(panels, "strengths", "strengths over the search, a panel for each decision"),
        ]
    return {"drawings": drawings} if drawings else None


def health(run: Run) -> Values | None:
    """The signs of a collapse, epoch by epoch; of a search that has not ended, from its trials."""
    rows = list(run.health)
    if not rows and run.is_by_gradients:
        for place, trial in enumerate(run.search.done, start=1):
            shares = {"all cells": trial.metrics.get("skip_share", 0.0)}
            rows.append(EpochRecord.model_validate({**trial.metrics, "epoch": place, "skip_shares": shares}))
    if not rows:
        return None
    drawing = Drawing.of(draw.draw_diagnostics(rows), "health", "health of the search by epoch")
    return {"drawings": [drawing], "events": [(row.epoch, event) for row in rows for event in row.events]}


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
        "metrics": {name: metric(name, value) for name, value in run.metrics.items()},
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
