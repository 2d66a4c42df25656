"""`nas predict`: the classes of images, by a found model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.app import Json, announce, app, errors, say
from nas.errors import ConfigError, DataError
from nas.text import counted

if TYPE_CHECKING:
    from nas.export.serving.session import Answer, Served


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    images: Annotated[
        list[str] | None, typer.Argument(help="Image files, .npy arrays, or folders of them.")
    ] = None,
    npz: Annotated[
        Path | None, typer.Option(help="An .npz file with an array `images`, `x` or `x_test`.")
    ] = None,
    top: Annotated[int, typer.Option(help="So many classes of each image.", min=1)] = 3,
    csv: Annotated[
        Path | None, typer.Option(help="Write the answers into this .csv file instead of showing them.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="The run's space, where it is your own code: FILE.py:FUNCTION.")
    ] = None,
    as_json: Json = False,  # noqa: FBT002 - a switch of the command line
) -> None:
    """Say the classes of images. What cannot be read is named; all others are answered."""
    with errors():
        from nas.export.predict import predicted
        from nas.export.serving.session import as_csv, read_served
        from nas.files.atomic import write_text

        if not images and npz is None:
            raise ConfigError(
                "predict: no images were given; name image files or a folder, or arrays with --npz FILE"
            )
        if csv is not None:
            _check_csv(csv)
        served = read_served(run)
        if space is not None:
            announce(space)
        found, troubles = predicted(run, served, images or [], npz, top=top, space=space)
        if csv is not None:
            write_text(csv, as_csv(found))
        _show(found, troubles, served, csv=csv, as_json=as_json)
        if troubles:
            raise DataError(f"{len(troubles)} of {len(troubles) + len(found)} could not be answered")


def _check_csv(path: Path) -> None:
    """Refuses a name that is rather an image's, so that none is overwritten where the name was forgotten."""
    from nas.files.atomic import prepare_folder

    if path.suffix.lower() != ".csv":
        raise ConfigError(f"--csv is {str(path)!r}, wanted the name of a file that ends in .csv")
    if path.is_dir():
        raise ConfigError(f"--csv is {str(path)!r}, a folder; name a file in it")
    prepare_folder(path.parent)


def _show(
    found: list[Answer], troubles: list[str], served: Served, *, csv: Path | None, as_json: bool
) -> None:
    if as_json:
        told = {
            "model": served.title,
            "steps": served.steps,
            "answers": [a.to_dict() for a in found],
            "errors": troubles,
        }
        say(json.dumps(told))
        return
    say(f"an image becomes: {served.steps}", err=True)
    if csv is None:
        for answer in found:
            say(str(answer))
    else:
        say(f"{csv}  {counted(len(found), 'answer')}")
    for trouble in troubles:
        say(f"error: {trouble}", err=True)
