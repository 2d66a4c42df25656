"""`nas export`: a finished run's model in forms that run without the engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import announce, app, errors, say
from nas.errors import ConfigError
from nas.run.config import TASK


@app.command(short_help="Write model.py, model.pt2 and model.onnx of a finished run.")
def export(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    task: Annotated[str | None, typer.Option(help=f"{TASK} [default: the run's]")] = None,
    space: Annotated[
        str | None, typer.Option(help="The run's space, where it is your own code: FILE.py:FUNCTION.")
    ] = None,
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
    with errors():
        from nas.data.exclusions import load_without
        from nas.export.bundle import bundle, record_of
        from nas.files.lock import FolderLock
        from nas.results.result import load_result

        if space is not None:
            announce(space)
        result = load_result(run, space=space)
        config = record_of(run)["config"]
        listed = config.get("exclude") if task is None else None
        data = load_without(task or config["task"], listed, seed=config["seed"])
        say("writing model.py, model.pt2 and model.onnx, and proving each", err=True)
        with FolderLock(result.folder):
            bundle(result, data, pythons=[_interpreter(path) for path in python or []], tell=say)
        say(f"{run / 'MODEL_CARD.md'}")


def _interpreter(python: Path) -> Path:
    """Where an interpreter is; its link is kept, since a virtual environment is known by where that lies."""
    found = shutil.which(str(python))
    if found is None:
        raise ConfigError(f"--python {python}: there is no such program; give the path of a Python")
    return Path(found).absolute()
