"""`nas retrain`: one known architecture is trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.app import Force, Json, Quiet, Sets, announce, app, values
from nas.cli.job import run_and_show
from nas.cli.settings import with_settings
from nas.run.config import TASK

if TYPE_CHECKING:
    from nas.cli.job import StopRequest
    from nas.results.result import Result
    from nas.show.progress import Progress


USED = (
    *("preset", "seed", "device", "execution", "graph", "export", "pictures", "deterministic"),
    *("tensorboard", "mlflow", "augment", "exclude", "budget"),
)
"""Settings of a job that a retraining reads, as options."""


@app.command(short_help="Train a known architecture from scratch and test it.")
@with_settings(USED)
def retrain(
    source: Annotated[
        str, typer.Argument(help="A finished run's folder, an architecture.json, or a genotype's text.")
    ],
    *,
    given: dict[str, object],
    task: Annotated[str, typer.Option(help=TASK)],
    out: Annotated[Path, typer.Option(help="Folder for the result.")],
    space: Annotated[
        str | None, typer.Option(help="The space, for a genotype's text or where it is your own code.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of training. [default: the preset's]")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    sets: Sets = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a known architecture from scratch and measure its test accuracy. The same command resumes."""
    given = {"task": task, **given}

    def job(progress: Progress, stop: StopRequest) -> Result:
        from nas.results.architecture_file import architecture_of
        from nas.run.retrain import retrain as train_again

        assignments = [*(sets or []), *([f"retrain.epochs={epochs}"] if epochs is not None else [])]
        if space is not None:
            announce(space)
        return train_again(
            architecture_of(source, space=space),
            task,
            out=out,
            space=space,
            settings=values(config, given, assignments),
            force=force,
            progress=progress,
            stop=stop,
        )

    run_and_show(job, quiet=quiet, as_json=as_json)
