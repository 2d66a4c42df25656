"""`nas report`: a run's report, or several runs beside each other, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import announce, app, errors, say
from nas.errors import ConfigError


@app.command(short_help="Write report.html of a run, or of several side by side.")
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, finished or not; several are compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file. [default: report.html in the run's folder, of several runs here]"),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(help="The space of a run, where it is your own code, so that its cells can be drawn."),
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Power of a device at work, for the estimate of energy. [default: assumed]"
        ),
    ] = None,
) -> None:
    """Write report.html: all that a run did and found, as one file that needs no network."""
    with errors():
        from nas.files.manifest import MANIFEST, update_manifest
        from nas.show.report import REPORT, write_report
        from nas.show.report.page import searched_space

        if len(runs) > 1 and (space is not None or watts is not None):
            raise ConfigError("--space and --watts are for the report of a single run; remove them")
        if space is not None:
            announce(space)
        target = out or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
        loaded = None if space is None else searched_space(runs[0], space)
        size = write_report(runs, target, space=loaded, watts=watts)
        own = target.resolve() == (runs[0] / REPORT).resolve()
        if own and (runs[0] / MANIFEST).is_file():
            update_manifest(runs[0], [REPORT])
        say(f"{target}  {size / 1e6:.2f} MB")
