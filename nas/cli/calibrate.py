"""`nas calibrate`: which cheap estimates rank like long training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import Json, Quiet, Sets, announce, app, say, values
from nas.cli.job import stoppable
from nas.cli.settings import with_settings


@app.command(short_help="Measure which cheap estimates rank like long training.")
@with_settings(("space", "task", "preset", "seed", "device"))
def calibrate(
    *,
    given: dict[str, object],
    architectures: Annotated[int, typer.Option(help="Random architectures that are trained for long.")] = 16,
    epochs: Annotated[int, typer.Option(help="Epochs of the long training, the truth.")] = 12,
    seeds: Annotated[int, typer.Option(help="Long trainings of each architecture.")] = 2,
    threshold: Annotated[
        float, typer.Option(help="Kendall's tau that a fidelity must surely exceed to be trusted.")
    ] = 0.4,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the outcome. [default: results/calibrate-SPACE-TASK]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings of a job.")] = None,
    sets: Sets = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure which cheap estimates rank architectures like long training does. The same command resumes."""
    with stoppable(quiet=quiet, plain=as_json) as (progress, stop):
        from nas.evaluate.calibration import Settings
        from nas.run.calibrate import calibrate as run

        settings = {"space": "darts", "task": "digits"} | values(config, given, sets)
        announce(str(settings["space"]))
        found = run(
            str(settings["space"]),
            str(settings["task"]),
            Settings(architectures, epochs, seeds, threshold),
            out=out,
            config=settings,
            progress=progress,
            stop=stop,
        )
    say(json.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))
