"""What a run is, and what came out of it; and all that is needed to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from nas.files.paths import is_file
from nas.results.run_record import DEFAULT, SEARCH
from nas.searchers.goals import Goals
from nas.show.report.run import Run
from nas.show.report.section import Section, count, duration, metric, percent, signed
from nas.space.loading import is_plugin

_MOST_CONFIG = 20_000
_MADE = "own:"
"""How the name of a method begins that was put together in Python."""


def summary(run: Run) -> Section:
    """The head of the page."""
    return Section(
        "summary",
        "Summary",
        "",
        template="summary",
        values={
            "facts": facts(run),
            "figures": _figures(run),
            "statements": run.compared.statements if run.compared is not None else [],
            "state": state(run),
        },
    )


def state(run: Run) -> str:
    """What a reader should know first: that the run has not ended, or that its search did not win."""
    if run.is_finished:
        by = "search" if run.compared is None else run.compared.found_by
        if by == DEFAULT:
            return "The model is the space's default architecture, not one that was found; see why below."
        return "" if by == SEARCH else f"The winner was not found by the search, but by its baseline {by}."
    ended = sum(t.state != "running" for t in run.search.trials)
    what = "epochs" if run.is_by_gradients else "trials"
    best = ""
    if (top := run.best) is not None:
        objective = run.search.goals.objectives[0]
        best = f", the best {objective.name} is {metric(objective.name, objective.value(top.metrics))}"
    return f"This run has not finished: {ended} {what} of its search have ended so far{best}."


def facts(run: Run) -> dict[str, str]:
    """Space, task, method and so on, in words."""
    record = run.record
    space, task, images = record["space"], record["task"], run.told.task.images
    found = {
        "space": f"{space.get('name', '')}, {space.get('decisions', '?')} decisions, "
        f"{space.get('size', '?')} architectures",
        "task": f"{task['name']}, {len(task['classes'])} classes, images "
        + "×".join(map(str, task["image_shape"]))
        + f" ({', '.join(f'{n} {part}' for part, n in images.items())})",
    }
    if run.method:
        goals = record["plan"].get("goals")
        trials = "trials on shared weights" if run.shares_weights else "trained trials"
        found["method"] = f"{run.method}, by {'gradients' if run.is_by_gradients else trials}"
        found["goals"] = str(Goals.from_dict(goals) if goals else Goals())
    environment = run.told.environment
    found["device"] = f"{environment.get('device', '?')} ({environment.get('hardware', '?')})"
    return found | {
        "seed": str(record["config"].get("seed", 0)),
        "begun": (run.told.begun or "unknown").replace("T", " "),
    }


def _figures(run: Run) -> list[tuple[str, str, str]]:
    """The large numbers: name, value, and what there is to add."""
    m, found = run.metrics, []
    if "test_acc" in m:
        low, high = m.get("test_acc_low", m["test_acc"]), m.get("test_acc_high", m["test_acc"])
        added = f"95 % interval {100 * low:.2f} to {percent(high)}; measured once"
        found.append(("test accuracy", percent(m["test_acc"]), added))
    if "params" in m:
        found.append(("parameters", count(m["params"]), f"{count(m.get('macs', 0))} multiply-accumulates"))
    if "latency_ms" in m:
        found.append(
            ("latency", f"{m['latency_ms']:.3g} ms", f"95 % below {m.get('latency_p95_ms', 0):.3g} ms")
        )
    for name, words in (("random", "random search"), ("default", "the default")):
        if (delta := m.get(f"{name}_delta")) is not None:
            low, high = (100 * m.get(f"{name}_delta_{end}", delta) for end in ("low", "high"))
            added = f"points of validation accuracy; 95 % interval {signed(low)} to {signed(high)}"
            found.append((f"against {words}", signed(100 * delta), added))
    if "search_seconds" in m:
        trials = f"{m.get('trials', 0):.0f} {'epochs' if run.is_by_gradients else 'trials'}"
        found.append(("search", duration(m["search_seconds"]), trials))
    return found


def reproduce(run: Run) -> Section:
    """Settings, versions and fingerprints."""
    record = run.record
    environment = run.told.environment
    file = run.folder / "config.toml"
    config = ""
    if is_file(file):
        with file.open(errors="replace") as opened:
            config = opened.read(_MOST_CONFIG)
    rows: dict[str, str] = {
        "settings of the space": _table(record["space"].get("settings")),
        "of the trained network": _table(record["plan"].get("final_size")),
        "fingerprint of the images": record["task"]["fingerprint"],
        "hash of the space's file": str(record["space"].get("file_sha256") or ""),
        "hash of the architecture": str((run.architecture or {}).get("hash", "")),
        "genotype": str(list((run.architecture or {}).get("genotype", [])) or ""),
        "commit": str(environment.get("commit") or ""),
        "versions": _table({k: v for k, v in environment.items() if k not in _OTHERS and v is not None}),
        "notes": "; ".join(run.told.task.notes),
    }
    return Section(
        "reproduce",
        "To do it again",
        "The same settings, seed, images and versions give the same result on the same kind of device; "
        "nas check RUN says whether the files of a run are still as they were written.",
        template="reproduce",
        values={
            "command": _command(run),
            "config": config,
            "rows": {k: v for k, v in rows.items() if v},
            "metrics": {name: metric(name, value) for name, value in run.metrics.items()},
        },
    )


_OTHERS = ("device", "hardware", "threads", "commit", "ranks")


def _table(values: object) -> str:
    pairs = values.items() if isinstance(values, Mapping) else ()
    return ", ".join(f"{name} {value}" for name, value in pairs)


def _command(run: Run) -> str:
    """What repeats the run; code of the user's own has to be named on the command line, too."""
    if not run.record["space"].get("origin") or run.method.startswith(_MADE):
        return "# Made in Python: repeat its call of nas.search or nas.retrain with these settings."
    config, out = run.record["config"], shlex.quote(f"results/{run.name}-again")
    origin = str(run.record["space"].get("origin") or "")
    own = f" --space {shlex.quote(origin)}" if origin and is_plugin(origin) else ""
    if not run.method:
        source = shlex.quote(f"{run.name}/architecture.json")
        task = shlex.quote(str(config.get("task", run.record["task"]["name"])))
        return f"nas retrain {source} --task {task}{own} --config config.toml --out {out}"
    return f"nas search --config config.toml{own} --out {out}"
