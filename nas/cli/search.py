"""`nas search`: the whole job, with a look at what it would cost."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.app import Force, Json, Quiet, Sets, announce, app, errors, say, values
from nas.cli.job import run_and_show
from nas.cli.settings import with_settings
from nas.training.launch import follows

if TYPE_CHECKING:
    from nas.cli.job import StopRequest
    from nas.results.result import Result
    from nas.run.budget import Preview, Tell
    from nas.run.config import Config
    from nas.show.progress import Progress

PREVIEW = "NAS_PREVIEW"
"""The environment variable that leaves the preview of a search out, where it is `off`."""


@app.command()
@with_settings()
def search(
    *,
    given: dict[str, object],
    preview: Annotated[
        bool, typer.Option("--preview", help="Only say what the search would cost; nothing is written.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Begin without asking, however long it is estimated to take.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. [default: results/SPACE-TASK-METHOD]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    sets: Sets = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search, train the best again, train the winner in full. The same command resumes a run."""
    since = time.monotonic()  # before libraries are loaded, which takes seconds

    def settled() -> Config:
        from nas.run.config import make_config
        from nas.searchers.method_names import is_own

        settings = make_config(values(config, given, sets), where=str(config or "command line"))
        announce(settings.space)
        if is_own(settings.method):
            announce(settings.method)
        return settings

    def job(progress: Progress, stop: StopRequest) -> Result:
        from nas.run.job import Clock
        from nas.run.pipeline import run_job

        settings = settled()
        clock = Clock(settings.budget, since=since)
        return run_job(
            settings,
            out=out,
            force=force,
            progress=progress,
            stop=stop,
            clock=clock,
            tell=teller(progress, yes=yes),
        )

    if preview:
        look_only(settled, as_json=as_json)
    else:
        run_and_show(job, quiet=quiet, as_json=as_json)


def look_only(settled: Callable[[], Config], *, as_json: bool) -> None:
    """Shows what a search would cost."""
    with errors():
        from nas.run.pipeline import look

        found = look(settled())
        say(json.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))


def teller(progress: Progress, *, yes: bool) -> Tell | None:
    """Shows a preview; on a terminal asks whether to go on where it is beyond an hour.

    None where $NAS_PREVIEW is off.
    """
    from nas.run.budget import HOUR_S
    from nas.show.console import LiveProgress

    if os.environ.get(PREVIEW) == "off" or follows():
        return None

    def tell(found: Preview) -> bool:
        for line in found.lines():
            progress.note(line)
        if yes or found.seconds <= HOUR_S or not sys.stdin.isatty():
            return True
        return progress.ask("begin?") if isinstance(progress, LiveProgress) else True

    return tell
