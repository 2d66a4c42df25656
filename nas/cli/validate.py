"""`nas validate`: whether a space works, how large it is, and what it will cost."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nas.cli.app import Json, announce, app, errors, say
from nas.run.config import SPACE, TASK


@app.command(short_help="Check a space: does it work, how large is it, what will it cost.")
def validate(
    space: Annotated[str, typer.Argument(help=SPACE)],
    task: Annotated[str, typer.Option(help=TASK)] = "digits",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Settings of the space, e.g. width=8."),
    ] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Check a space against a task: does every part of it work, how large is it, what will it cost."""
    with errors():
        from nas import devices
        from nas.data.task import load_task
        from nas.evaluate.validate import validate as check
        from nas.files.tomlfile import override
        from nas.run.final_network import offer
        from nas.space.loading import load

        announce(space)
        data = load_task(task).to(devices.resolve(device))
        report = check(
            load(space, offer(data), **override({}, [s.removeprefix("space_settings.") for s in sets or []])),
            data,
        )
        say(json.dumps(report.to_dict()) if as_json else "\n".join(report.lines()))
