"""`nas check`: whether the files of a finished run are as recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import Json, app, errors


@app.command(short_help="Say which files of a finished run were changed since.")
def check(
    folder: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Say which files of a finished run differ from what was recorded when it finished."""
    with errors():
        from nas.files.manifest import check_manifest, damaged

        damage = check_manifest(folder)
        if as_json:
            typer.echo(json.dumps({"folder": str(folder), "damage": damage}))
        elif not damage:
            typer.echo(f"{folder}: every file is as recorded")
        if damage:
            raise damaged(folder, damage)
