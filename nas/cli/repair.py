"""`nas repair`: what can be read of a damaged journal is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import Json, app, errors


@app.command(short_help="Save what can be read of a run's damaged journal.")
def repair(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Save what can be read of a run's damaged journal, and say what is lost. The damaged file is kept."""
    with errors():
        from nas.storage.repair import repair as mend

        report = mend(run)
        typer.echo(json.dumps(report.to_dict()) if as_json else "\n".join(report.lines()))
