"""`nas doctor`: what this machine offers."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nas.cli.app import Json, app, errors, say


@app.command(short_help="Say what this machine offers: versions, devices, data, extras.")
def doctor(
    as_json: Json = False,  # noqa: FBT002
    try_kernels: Annotated[  # noqa: FBT002
        bool, typer.Option("--try-kernels", help="Try the kernels on the GPU, anew; takes minutes.")
    ] = False,
) -> None:
    """Say what this machine offers: versions, devices, data sets and tables that can be loaded, extras."""
    with errors():
        from nas.doctor import examine

        findings = examine(try_kernels=try_kernels)
        if as_json:
            say(json.dumps(findings))
        else:
            say("\n".join(f"{name:19} {value}" for name, value in findings.items()))
