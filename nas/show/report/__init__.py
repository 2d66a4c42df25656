"""The report of a run, or the comparison of several: one file without anything from outside.

Nothing from a name can run in it: all text is escaped, and its policy allows its own script and style alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from nas import __version__
from nas.errors import ConfigError, printable
from nas.files.atomic import write_text
from nas.results.run_record import read_run
from nas.show import draw
from nas.show.draw import Bands
from nas.show.report import sections
from nas.show.report.run import Run, read
from nas.show.report.section import NUMBERS, Drawing, Tip, Values, metric
from nas.space.loading import load
from nas.space.space import Space

REPORT = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"
Part = tuple[str, str, Values | None]
"""Name and title of a section, and what it shows; None where there are no data for it."""


def write_report(
    folders: Sequence[Path], out: Path, *, space: Space | None = None, watts: float | None = None
) -> int:
    """Writes the report of a run or the comparison of several, see `render`; returns its size in bytes."""
    text = render(folders, space=space, watts=watts)
    write_text(out, text)
    return len(text.encode())


def render(folders: Sequence[Path], *, space: Space | None = None, watts: float | None = None) -> str:
    """The report of a run, finished or not, or the comparison of several, as the text of an HTML file.

    Only what the folders hold is looked at, and nothing in them is executed.

    space: that of the trials of a single run, where it is code of the user's own.
    watts: of a device while it works, in place of what is assumed of it.

    Raises:
        ConfigError: when there is no run in a folder, or what is there is damaged.
    """
    if not folders:
        raise ConfigError("report: got no run, wanted at least one folder of a run")
    runs = [read(folder, space) for folder in folders]
    return render_run(runs[0], watts) if len(runs) == 1 else _comparison(runs)


def searched_space(folder: Path, path: str) -> Space:
    """The space of a run's trials, from code of the user's own, which is run.

    Raises:
        NasError: when there is no run, or the space cannot be made with its settings.
    """
    settings = read_run(folder)["space"].get("settings")
    return load(path, **(settings if isinstance(settings, dict) else {}))


def render_run(run: Run, watts: float | None = None) -> str:
    """The report of one run that was read."""
    parts: Sequence[Part] = (
        ("summary", "Summary", sections.summary(run)),
        ("cells", "Found cells", sections.cells(run)),
        ("network", "Whole network", sections.network(run)),
        ("evolving", "How the cell evolved", sections.evolving(run)),
        ("anytime", "Anytime curve", sections.anytime(run)),
        ("front", "Pareto front", sections.front(run)),
        ("alphas", "Alphas", sections.alphas(run)),
        ("health", "Health of the search", sections.health(run)),
        ("importance", "What mattered", sections.importance(run)),
        ("failures", "Failures", sections.failures(run)),
        ("timeline", "Timeline of trials", sections.timeline(run)),
        ("cost", "Cost", sections.cost(run, watts)),
        ("reproduce", "To do it again", sections.reproduce(run)),
    )
    return _page(run.name, "Report of a search" if run.method else "Report of a training", parts)


def _page(title: str, kind: str, parts: Sequence[Part]) -> str:
    tips: dict[str, dict[int, Tip]] = {"trials": {}, "timeline": {}}
    for _, _, values in parts:
        for name, entries in (values or {}).get("tips", {}).items():
            tips[name] |= entries
    style, script = (Markup((_TEMPLATES / name).read_text("utf-8")) for name in ("style.css", "script.js"))  # nosec B704
    return _template().render(
        title=title,
        kind=kind,
        sections=[part for part in parts if part[2] is not None],
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        tips=tips,
        version=__version__,
    )


@cache
def _template() -> jinja2.Template:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals.update(NUMBERS)
    return found.get_template("report.html")


def _shown(value: object) -> object:
    """Text without what could not be written or turns the direction of writing."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return printable(value).replace(" %", "\N{NO-BREAK SPACE}%")


def _hash(text: str) -> str:
    """What a content security policy knows a style or a script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# -- several runs beside each other -------------------------------------------------------------------

_MOST_CURVES = 8
_MOST_ROWS = 60
_IN_WORDS = (
    *("storage", "executor", "storage_patience", "objective", "constraint"),
    *("goals.objectives", "goals.constraints"),
)
"""Settings that say nothing of the outcome, or stand in the table in words."""
_RETRAINED = (
    *("final", "full_size", "preset", "retrain", "space_settings", "final_settings", "deterministic"),
    *("execution", "graph", "exclude"),
)
"""The settings of a retraining."""


def _comparison(runs: Sequence[Run]) -> str:
    """What differs between runs in settings and sections."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.folder.parent.name}/{run.name}" for run in runs]
    parts: Sequence[Part] = (
        ("settings", "Settings", _settings(runs, names)),
        ("metrics", "Outcomes", _metrics(runs, names)),
        ("curves", "Anytime curves", _curves(runs, names)),
        ("cells", "Found cells", _cells(runs, names)),
    )
    return _page(", ".join(names), f"Comparison of {len(runs)} runs", parts)


def _settings(runs: Sequence[Run], names: Sequence[str]) -> Values:
    """What the runs are, and the settings in which they differ; highlighted rows differ."""
    told, used = [sections.facts(run) for run in runs], [_used(run) for run in runs]
    keys = dict.fromkeys(key for table in told for key in table)
    rows = [(key, [table.get(key, "–") for table in told]) for key in keys]
    for key in sorted({key for table in used for key in table} - {*keys, *_IN_WORDS}):
        found = [_setting(table.get(key)) for table in used]
        if len(set(found)) > 1:
            rows.append((key, found))
    marked = [(key, row, len(set(row)) > 1) for key, row in rows[:_MOST_ROWS]]
    return {"head": names, "rows": marked, "more": len(rows) - _MOST_ROWS}


def _setting(value: object) -> str:
    """A setting's value: a number without the digits that nobody set, a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _used(run: Run) -> dict[str, object]:
    """The settings that a run had any use for: its record holds those of other kinds of runs, too."""
    idle = {"search" if not run.is_by_gradients else "searcher"}
    if not run.shares_weights:
        idle |= {"supernet", "sharing"}
    found = _flat(run.record["plan"], "") | _flat(run.record["config"], "")
    first = {key: key.partition(".")[0] for key in found}
    if not run.method:
        return {key: value for key, value in found.items() if first[key] in _RETRAINED}
    return {key: value for key, value in found.items() if first[key] not in idle}


def _flat(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{name}.{key}".lstrip(".")).items()}


def _metrics(runs: Sequence[Run], names: Sequence[str]) -> Values | None:
    """Each metric with its interval, where there is one."""
    rows = [
        (key.replace("_", " "), [_value(run, key) for run in runs], False)
        for key in dict.fromkeys(key for run in runs for key in run.metrics)
        if not key.endswith(("_low", "_high"))
    ]
    return {"head": names, "rows": rows, "more": 0} if rows else None


def _value(run: Run, key: str) -> str:
    if key not in run.metrics:
        return "–"
    value, *ends = (
        metric(name, run.metrics[name], is_share=run.told.task.is_share)
        for name in (key, f"{key}_low", f"{key}_high")
        if name in run.metrics
    )
    return value + (f" ({' to '.join(ends)})" if len(ends) == 2 else "")


def _curves(runs: Sequence[Run], names: Sequence[str]) -> Values | None:
    """The best so far of each run, over seconds where gradients searched in one of them."""
    searched = [(run, name) for run, name in zip(runs, names, strict=True) if run.search.allowed]
    objectives = {run.search.goals.objectives[0].name for run, _ in searched}
    if len(objectives) != 1:
        return None
    kinds = {run.is_by_gradients for run, _ in searched}
    curves: dict[str, Bands] = {}
    for run, name in searched[:_MOST_CURVES]:
        band = sections.expected(run, name)[name]
        seconds = sections.elapsed(run.search.allowed)
        curves[name] = Bands(seconds, band.mean, band.low, band.high) if len(kinds) > 1 else band
    xlabel, objective = "evaluations" if kinds == {False} else "seconds of evaluation", objectives.pop()
    figure = draw.draw_anytime(curves, xlabel=xlabel, ylabel=objective)
    return {
        "drawings": [Drawing.of(figure, f"best {objective} so far of each run")],
        "objective": objective,
        "xlabel": xlabel,
        "mixed": len(kinds) > 1,
        "shown": len(curves),
        "of": len(searched),
    }


def _cells(runs: Sequence[Run], names: Sequence[str]) -> Values | None:
    pairs = zip(runs, names, strict=True)
    found = [drawing for run, name in pairs for drawing in sections.draw_cells(run.graphs, name)]
    return {"drawings": found, "text": "", "beside": True} if found else None
