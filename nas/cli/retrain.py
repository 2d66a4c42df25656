"""`nas retrain`: one known architecture is trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.app import TASK, Force, Json, MLflow, Quiet, Sets, TensorBoard, announce, app, values
from nas.cli.job import run_job

if TYPE_CHECKING:
    from nas.progress import Progress
    from nas.results.result import Result
    from nas.signals import StopRequest


@app.command(short_help="Train a known architecture from scratch and test it.")
def retrain(
    source: Annotated[
        str, typer.Argument(help="A finished run's folder, an architecture.json, or a genotype's text.")
    ],
    task: Annotated[str, typer.Option(help=TASK)],
    out: Annotated[Path, typer.Option(help="Folder for the result.")],
    space: Annotated[
        str | None, typer.Option(help="The space, for a genotype's text or where it is your own code.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="As in search. [default: quick]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of training. [default: the preset's]")] = None,
    seed: Annotated[int | None, typer.Option(help="Root of all randomness. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1. [default: auto]")] = None,
    execution: Annotated[str | None, typer.Option(help="As in search. [default: auto]")] = None,
    graph: Annotated[bool | None, typer.Option(help="As in search. [default: graph]")] = None,
    export: Annotated[bool | None, typer.Option(help="As in search. [default: export]")] = None,
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic", help="As in search. [default: off]")
    ] = None,
    tensorboard: TensorBoard = None,
    mlflow: MLflow = None,
    augment: Annotated[
        str | None, typer.Option(help="none, or parts of crop+flip+cutout. [default: as in search]")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="As in search. [default: nothing]")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    sets: Sets = None,
    force: Force = False,  # noqa: FBT002
    quiet: Quiet = False,  # noqa: FBT002
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Train a known architecture from scratch and measure its test accuracy. The same command resumes."""
    given = {
        "task": task,
        "preset": preset,
        "seed": seed,
        "device": device,
        "execution": execution,
        "graph": graph,
        "export": export,
        "augment": augment,
        "exclude": exclude,
        "deterministic": deterministic,
        "tensorboard": tensorboard,
        "mlflow": mlflow,
    }

    def job(progress: Progress, stop: StopRequest) -> Result:
        from nas.job.retrain_run import retrain as train_again
        from nas.results.architecture_file import architecture_of

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

    run_job(job, quiet=quiet, as_json=as_json)
