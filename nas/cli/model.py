"""`nas predict`, `nas export`, `nas serve`: the model that a run found is put to use."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import Json, OwnSpace, Run, StopRequest, announce, app, say
from nas.errors import ConfigError, DataError, counted
from nas.run.config import TASK, size

SERVE = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "onnxruntime": "onnxruntime",
    "PIL": "pillow",
}
"""Packages that a server needs, by the names of their modules."""


@app.command()
def predict(
    run: Run,
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
    space: OwnSpace = None,
    as_json: Json = False,
) -> None:
    """Say the classes of images. What cannot be read is named; all others are answered."""
    from nas.export.formats import Pixels
    from nas.export.inference import answer_files, as_csv, read_served
    from nas.files.atomic import write_text
    from nas.files.folder import prepare_folder
    from nas.results.result import load_result

    if not images and npz is None:
        raise ConfigError(
            "predict: no images were given; name image files or a folder, or arrays with --npz FILE"
        )
    if csv is not None and (
        csv.suffix.lower() != ".csv" or csv.is_dir()
    ):  # rather an image, not to be overwritten
        raise ConfigError(f"--csv is {str(csv)!r}, wanted the name of a file that ends in .csv")
    served = read_served(run)
    announce(space)
    result = load_result(run, space=space)
    model = Pixels(result.network, result.inputs)
    found, troubles = answer_files(model.logits, served, images or [], npz, top=top)
    if csv is not None:
        write_text(prepare_folder(csv.parent) / csv.name, as_csv(found))
    if as_json:
        answers = [answer.to_dict() for answer in found]
        told = {"model": served.title, "steps": served.steps, "answers": answers, "errors": troubles}
        say(json.dumps(told))
    else:
        say(f"an image becomes: {served.steps}", err=True)
        for line in map(str, found) if csv is None else [f"{csv}  {counted(len(found), 'answer')}"]:
            say(line)
        for trouble in troubles:
            say(f"error: {trouble}", err=True)
    if troubles:
        raise DataError(f"{len(troubles)} of {len(troubles) + len(found)} could not be answered")


@app.command(short_help="Write model.py, model.pt2 and model.onnx of a finished run.")
def export(
    run: Run,
    task: Annotated[str | None, typer.Option(help=f"{TASK} [default: the run's]")] = None,
    space: OwnSpace = None,
    python: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="<path>",
            help="Interpreter of a clean environment to prove the forms in, those that it has torch or "
            "onnxruntime for; may be repeated. [default: this one]",
        ),
    ] = None,
) -> None:
    """Write model.py, model.pt2 and model.onnx beside the weights, each proven to be the scored model."""
    from nas.data.exclusions import load_without
    from nas.export.bundle import bundle, record_of
    from nas.files.folder import folder_lock
    from nas.results.result import load_result

    announce(space)
    result = load_result(run, space=space)
    config = record_of(run)["config"]
    listed = config.get("exclude") if task is None else None
    data = load_without(task or config["task"], listed, seed=config["seed"])
    # Its link is kept, since a virtual environment is known by where that lies.
    pythons = [Path(shutil.which(path) or path).absolute() for path in python or []]
    say("writing model.py, model.pt2 and model.onnx, and proving each", err=True)
    with folder_lock(result.folder):
        bundle(result, data, pythons=pythons, tell=say)
    say(f"{run / 'MODEL_CARD.md'}")


@app.command(short_help="Answer images over HTTP, with a page to drop them on.")
def serve(
    run: Annotated[Path, typer.Argument(help="A finished run's folder with its bundle.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.", min=0, max=65535)] = 8000,
    max_upload: Annotated[str, typer.Option(help="What one request may hold.")] = "10MiB",
) -> None:
    """Answer images over HTTP: /predict, /health, and / in a browser. Needs the extra `serve`, not torch."""
    if missing := [package for module, package in SERVE.items() if find_spec(module) is None]:
        raise ConfigError(f"serve: {', '.join(missing)} is missing; pip install 'nas-engine[serve]'")
    from nas.export.server import serve as run_server

    try:
        most = size(max_upload)
    except ValueError as error:
        raise ConfigError(f"--max-upload {max_upload!r}: {error}") from error
    if not isinstance(most, int) or most < 1:
        raise ConfigError(f'--max-upload is {max_upload!r}, wanted a size such as "10MiB"')
    with StopRequest():
        run_server(run, host=host, port=port, upload_bytes=most, tell=say)
