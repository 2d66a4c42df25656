"""`nas serve`: a found model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import app, errors, say
from nas.errors import ConfigError


@app.command(short_help="Answer images over HTTP, with a page to drop them on.")
def serve(
    run: Annotated[Path, typer.Argument(help="A finished run's folder with its bundle.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.", min=0, max=65535)] = 8000,
    max_upload: Annotated[str, typer.Option(help="What one request may hold.")] = "10MiB",
) -> None:
    """Answer images over HTTP: /predict, /health, and / in a browser. Needs the extra `serve`, not torch."""
    with errors():
        from nas.cli.job import StopRequest
        from nas.export.serving.serve import serve as run_server
        from nas.run.config import size

        try:
            most = size(max_upload)
        except ValueError as error:
            raise ConfigError(f"--max-upload {max_upload!r}: {error}") from error
        if not isinstance(most, int) or most < 1:
            raise ConfigError(f'--max-upload is {max_upload!r}, wanted a size such as "10MiB"')
        with StopRequest():
            run_server(run, host=host, port=port, upload_bytes=most, tell=say)
