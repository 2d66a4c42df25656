"""`nas draw`: the cells of an architecture as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import announce, app, errors, say
from nas.errors import ConfigError


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
        from nas.files.atomic import prepare_folder
        from nas.files.paths import exists
        from nas.results.architecture_file import architecture_of, graphs_of
        from nas.run.result_files import draw_architecture

        if space is not None and exists(Path(source)):
            raise ConfigError(
                f"--space is for a genotype's text, but {source} is a file or folder; remove it"
            )
        if space is not None:
            announce(space)
        found = architecture_of(source, space=space)
        graphs = graphs_of(found)
        folder = prepare_folder(out)
        draw_architecture(folder, graphs, title=str(found["space"]))
        say(f"{folder / 'cells.svg'}\n{folder / 'cells.png'}")
