"""The page: one file without anything from outside, in which nothing from a name can run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from nas import __version__
from nas.errors import ConfigError
from nas.files.atomic import write_text
from nas.results.run_record import read_run
from nas.show.report import architecture, compare, curves, summary, trials, workers
from nas.show.report.run import Run, read
from nas.show.report.section import Section, Tip
from nas.space.loading import load
from nas.space.space import Space
from nas.text import printable

REPORT = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


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
    if len(runs) == 1:
        return render_run(runs[0], watts)
    names = _distinct(runs)
    return _page(", ".join(names), f"Comparison of {len(runs)} runs", compare.compare(runs, names))


def render_run(run: Run, watts: float | None = None) -> str:
    """The report of one run that was read."""
    kind = "Report of a search" if run.method else "Report of a training"
    return _page(run.name, kind, sections(run, watts))


def searched_space(folder: Path, path: str) -> Space:
    """The space of a run's trials, from code of the user's own, which is run.

    Raises:
        NasError: when there is no run, or the space cannot be made with its settings.
    """
    settings = read_run(folder)["space"].get("settings")
    return load(path, **(settings if isinstance(settings, dict) else {}))


def sections(run: Run, watts: float | None = None) -> list[Section]:
    """The parts of a run's report, without those that there are no data for."""
    found = [
        summary.summary(run),
        architecture.found(run),
        architecture.network(run),
        architecture.evolving(run),
        curves.anytime(run),
        curves.front(run),
        curves.alphas(run),
        curves.health(run),
        trials.lineage(run),
        trials.importance(run),
        workers.failed(run),
        workers.timeline(run),
        workers.energy(run, watts),
        summary.reproduce(run),
    ]
    return [section for section in found if section is not None]


def _distinct(runs: Sequence[Run]) -> list[str]:
    """Names of the runs' folders, with that of the folder around them or a number where they are alike."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.folder.parent.name}/{run.name}" for run in runs]
    if len(set(names)) < len(names):
        names = [f"{place} {name}" for place, name in enumerate(names, 1)]
    return names


def _page(title: str, kind: str, parts: Sequence[Section]) -> str:
    style, script = (_file(name) for name in ("style.css", "script.js"))
    tips: dict[str, dict[int, Tip]] = {}
    for section in parts:
        for name, entries in section.tips.items():
            tips.setdefault(name, {}).update(entries)
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            kind=kind,
            sections=parts,
            style=Markup(style),  # nosec B704
            script=Markup(script),  # nosec B704
            style_hash=_hash(style),
            script_hash=_hash(script),
            tips=_data(tips),
            version=__version__,
        )
    )


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    """Text without what could not be written or turns the direction of writing."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return printable(value).replace(" %", "\N{NO-BREAK SPACE}%")


def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text()


def _hash(text: str) -> str:
    """What a content security policy knows a style or a script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(value: Mapping[str, object]) -> Markup:
    """JSON for a script element, which no text in it can end."""
    text = json.dumps(value, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # nosec B704
