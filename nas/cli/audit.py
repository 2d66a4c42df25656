"""`nas audit`: what may be wrong with a task's images and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import Json, Quiet, app, errors, say
from nas.run.config import TASK


@app.command(short_help="Look for copies, leaks, outliers and wrong labels in data.")
def audit(
    task: Annotated[str, typer.Argument(help=TASK)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the findings. [default: results/audit-TASK]")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="What names wrong labels: own, or cleanlab (an extra).")
    ] = "own",
    seed: Annotated[int, typer.Option(help="Of the splits, as in search, and of the predictions.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many training images. [default: all]")] = None,
    exclude: Annotated[
        str | None, typer.Option(help="A suspects.json, or PATH:KINDS, of images to leave out before.")
    ] = None,
    quiet: Quiet = False,  # noqa: FBT002
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Look for unequal classes, copies, leaks between splits, outliers, wrong labels and damaged files."""
    with errors():
        from nas.audit import audit_task, write_audit
        from nas.audit.labels import named_backend
        from nas.data.exclusions import without
        from nas.data.task import load_task
        from nas.files.atomic import prepare_folder, results_folder

        chosen = named_backend(backend)
        data = load_task(task, seed=seed, limit=limit, lenient=True)
        if exclude is not None:
            data = without(data, exclude)
        found = audit_task(data, backend=chosen, seed=seed)
        place = out or results_folder("audit", task.removeprefix("folder:").removeprefix("npz:"))
        paths = write_audit(found, data, prepare_folder(place))
        if as_json:
            say(json.dumps({"folder": str(paths[0].parent), **found.to_dict()}))
            return
        if not quiet:
            say("\n".join(found.summary()))
        say("\n".join(f"{'' if number else 'written':<30} {path}" for number, path in enumerate(paths)))
