"""Commands that look: at architectures, spaces and this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.cli.app import SPACE, TASK, Json, announce, app, errors, say
from nas.errors import ConfigError
from nas.text import counted


@app.command()
def draw(
    source: Annotated[
        str, typer.Argument(help="A run's folder, an architecture.json, or a genotype's text with --space.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the pictures. [default: here]", show_default=False)
    ] = Path(),
    space: Annotated[str | None, typer.Option(help="The space of a genotype's text.")] = None,
) -> None:
    """Draw the cells of an architecture as cells.svg and cells.png."""
    with errors():
        from nas.files.folders import prepare_folder
        from nas.files.paths import exists
        from nas.results.architecture_file import graphs_of
        from nas.results.result_files import draw_architecture

        if space is not None and exists(Path(source)):
            raise ConfigError(
                f"--space is for a genotype's text, but {source} is a file or folder; remove it"
            )
        if space is not None:
            announce(space)
        found = architecture(source, space)
        graphs = graphs_of(found)
        folder = prepare_folder(out)
        draw_architecture(folder, graphs, title=str(found["space"]))
        say(f"{folder / 'cells.svg'}\n{folder / 'cells.png'}")


@app.command()
def spaces(as_json: Json = False) -> None:  # noqa: FBT002
    """List the search spaces that come with the engine."""
    with errors():
        from nas.registry import about, bundled, load

        rows: list[dict[str, Any]] = []
        for name in bundled():
            space = load(name)
            settings = {k: v for k, v in space.settings.items() if k not in ("classes", "in_channels")}
            rows.append(
                {
                    "name": name,
                    "about": about(name),
                    "decisions": len(space.decisions),
                    "size": str(space.size),
                    "settings": settings,
                }
            )
        if as_json:
            say(json.dumps(rows))
            return
        for row in rows:
            pairs = "  ".join(f"{name}={value}" for name, value in row["settings"].items())
            say(f"{row['name']:12}  {counted(row['decisions'], 'decision')}, {row['size']} architectures")
            say(f"{'':12}  {row['about']}\n{'':12}  settings: {pairs}")
        say(
            "\nChange a setting by --set space_settings.NAME=VALUE. Your own space: --space FILE.py:FUNCTION."
        )


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
        from nas.architectures.validate import validate as check
        from nas.files.tomlfile import override
        from nas.job.suited import offer
        from nas.registry import load
        from nas.task import load_task

        announce(space)
        data = load_task(task).to(devices.resolve(device))
        report = check(
            load(space, offer(data), **override({}, [s.removeprefix("space_settings.") for s in sets or []])),
            data,
        )
        say(json.dumps(report.to_dict()) if as_json else "\n".join(report.lines()))


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


def architecture(source: str, space: str | None) -> Mapping[str, Any]:
    """A run's architecture, that of a file, or that of a genotype's text in a space."""
    from nas.files.paths import exists
    from nas.registry import load
    from nas.results.architecture_file import describe_architecture, read_architecture

    if exists(Path(source)) or space is None:
        return read_architecture(Path(source))
    loaded = load(space)
    if loaded.notation is None:
        raise ConfigError(
            f"space {space!r} has no notation for genotypes; give a folder or architecture.json"
        )
    return describe_architecture(loaded, loaded.notation.read(source), {})
