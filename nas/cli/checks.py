"""`nas validate`, `nas audit`, `nas spaces`: a space or a task is looked at before it is searched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.app import Json, Quiet, announce, app, say
from nas.errors import counted
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
    as_json: Json = False,
) -> None:
    """Check a space against a task: does every part of it work, how large is it, what will it cost."""
    from nas import devices
    from nas.data.loading import load_task
    from nas.evaluate.validate import validate as check
    from nas.files.tomlfile import override
    from nas.run.final_network import offer
    from nas.space.loading import load

    announce(space)
    data = load_task(task).to(devices.resolve(device))
    settings = override({}, [assignment.removeprefix("space_settings.") for assignment in sets or []])
    found = check(load(space, offer(data), **settings), data)
    say(json.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))


@app.command(short_help="Look for copies, leaks, outliers and wrong labels in data.")
def audit(
    task: Annotated[str, typer.Argument(help=TASK)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the findings. [default: results/audit-TASK]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the splits, as in search, and of the predictions.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many training images. [default: all]")] = None,
    exclude: Annotated[
        str | None, typer.Option(help="A suspects.json, or PATH:KINDS, of images to leave out before.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Look for unequal classes, copies, leaks between splits, outliers, wrong labels and damaged files."""
    from nas.audit import audit_task, write_audit
    from nas.data.exclusions import without
    from nas.data.loading import load_task
    from nas.files.folder import prepare_folder, results_folder

    data = load_task(task, seed=seed, lenient=True)
    data = data if limit is None else data.reduced(limit)
    if exclude is not None:
        data = without(data, exclude)
    found = audit_task(data, seed=seed)
    place = out or results_folder("audit", task.removeprefix("folder:").removeprefix("npz:"))
    paths = write_audit(found, data, prepare_folder(place))
    if as_json:
        say(json.dumps({"folder": str(paths[0].parent), **found.to_dict()}))
        return
    if not quiet:
        say("\n".join(found.summary()))
    say("\n".join(f"{'' if number else 'written':<30} {path}" for number, path in enumerate(paths)))


@app.command()
def spaces(as_json: Json = False) -> None:
    """List the search spaces that come with the engine."""
    from nas.space.loading import about, bundled, load

    rows: list[dict[str, Any]] = []
    for name in bundled():
        space = load(name)
        settings = {k: v for k, v in space.settings.items() if k not in ("classes", "in_channels")}
        size = {"decisions": len(space.decisions), "size": str(space.size)}
        rows.append({"name": name, "about": about(name), **size, "settings": settings})
    if as_json:
        say(json.dumps(rows))
        return
    for row in rows:
        pairs = "  ".join(f"{name}={value}" for name, value in row["settings"].items())
        say(f"{row['name']:12}  {counted(row['decisions'], 'decision')}, {row['size']} architectures")
        say(f"{'':12}  {row['about']}\n{'':12}  settings: {pairs}")
    say("\nChange a setting by --set space_settings.NAME=VALUE. Your own space: --space FILE.py:FUNCTION.")
