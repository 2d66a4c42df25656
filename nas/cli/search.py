"""`nas search`: the whole job, with a look at what it would cost."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.app import (
    SPACE,
    TASK,
    Force,
    Json,
    MLflow,
    Quiet,
    Sets,
    TensorBoard,
    announce,
    app,
    errors,
    say,
    values,
)
from nas.cli.job import run_job
from nas.training.launch import follows

if TYPE_CHECKING:
    from nas.budget.forecast import Tell
    from nas.budget.preview import Preview
    from nas.job.config import Config
    from nas.progress import Progress
    from nas.results.result import Result
    from nas.signals import StopRequest

PREVIEW = "NAS_PREVIEW"
"""The environment variable that leaves the preview of a search out, where it is `off`."""


@app.command()
def search(
    space: Annotated[str | None, typer.Option(help=f"{SPACE} [default: darts]")] = None,
    task: Annotated[str | None, typer.Option(help=f"{TASK} [default: digits]")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="By trials: random, evolution, local, nsga2, guided, tpe, gp, optuna:NAME. On shared "
            "weights: spos. By gradients: darts, darts2, gdas, snas, drnas, pcdarts, sdarts-rs, "
            "sdarts-adv, fairdarts, beta-darts, gaea, oles, is-darts, pdarts, or your own as "
            "FILE.py:FUNCTION. [default: is-darts]"
        ),
    ] = None,
    evaluator: Annotated[
        str | None, typer.Option(help="trained or shared, for methods by trials. [default: trained]")
    ] = None,
    guard: Annotated[
        bool | None,
        typer.Option(help="Whether a search by gradients is put right when it collapses. [default: guard]"),
    ] = None,
    selection: Annotated[
        str | None, typer.Option(help="argmax or perturbation, by gradients. [default: argmax]")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help='What a step of a search by gradients may take, e.g. "8GiB"; it is changed to fit.'
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="What is optimised, e.g. val_acc, -latency_ms or 'val_acc - 0.01*latency_ms'; "
            "several make a Pareto search. [default: val_acc]",
        ),
    ] = None,
    constraint: Annotated[
        list[str] | None, typer.Option(metavar="<str>", help='A bound, e.g. "params<=3e6"; may be repeated.')
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="fixed, successive-halving or hyperband. [default: fixed]")
    ] = None,
    fidelity: Annotated[
        str | None,
        typer.Option(help='What a trial may spend, e.g. "epochs=3,width=0.5", or auto.'),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of nas calibrate, for --fidelity auto.")
    ] = None,
    baselines: Annotated[
        bool | None,
        typer.Option(help="Whether to compare with random search at equal cost. [default: baselines]"),
    ] = None,
    export: Annotated[
        bool | None,
        typer.Option(
            help="Whether to write model.py, model.pt2 and model.onnx at the end. [default: export]"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="How long phases take and how large networks are: quick (minutes), standard (as published), "
            "nasbench201 or nasbench201-12 (as for its table). [default: quick]"
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials, of methods by trials. [default: the preset's]")
    ] = None,
    max_failures: Annotated[
        int | None,
        typer.Option(help="So many failed trials in a row end the search. [default: 10]"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Epochs of a trial, of a shared supernet, or of a search by gradients. [default: the "
            "preset's]"
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help='Time for the whole job, e.g. "30m": a hard end, by when the best so far is trained.'
        ),
    ] = None,
    preview: Annotated[  # noqa: FBT002 - a switch of the command line
        bool, typer.Option("--preview", help="Only say what the search would cost; nothing is written.")
    ] = False,
    yes: Annotated[  # noqa: FBT002
        bool, typer.Option("--yes", help="Begin without asking, however long it is estimated to take.")
    ] = False,
    workers: Annotated[
        str | None,
        typer.Option(help="Processes that evaluate trials, a number, auto, or 0 for none. [default: 1]"),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(
            help="Where trials are evaluated instead: ray, ray://HOST:PORT, dask://HOST:PORT, or "
            "slurm:OPTION=VALUE,..."
        ),
    ] = None,
    asynchronous: Annotated[
        bool | None,
        typer.Option("--asynchronous", help="Propose by whatever has ended; not repeatable, never waits."),
    ] = None,
    trial_timeout: Annotated[
        str | None,
        typer.Option(help='A trial that takes longer, e.g. "2h", is begun once more, and then fails.'),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="How many of the best are trained again with fresh seeds. [default: the preset's]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Root of all randomness. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1. [default: auto]")] = None,
    execution: Annotated[
        str | None,
        typer.Option(help="How cells are run: plain, batched or auto. [default: auto]"),
    ] = None,
    graph: Annotated[
        bool | None,
        typer.Option(
            help="On CUDA, whether steps are captured and replayed as one graph where they can. "
            "[default: graph]"
        ),
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="On CUDA, only what gives the same bits on every run; slower."),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="How training images are varied: none, or parts of crop+flip+cutout. [default: crop, of "
            "CIFAR crop+flip]"
        ),
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(help="A suspects.json of nas audit, or PATH:KINDS: its images are left out."),
    ] = None,
    audit: Annotated[
        bool | None,
        typer.Option("--audit", help="Look for wrong labels, copies and leaks before the search."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database for the trials, e.g. sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE. "
            "[default: $NAS_STORAGE, else a file in the run's folder]"
        ),
    ] = None,
    tensorboard: TensorBoard = None,
    mlflow: MLflow = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. [default: results/SPACE-TASK-METHOD]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    sets: Sets = None,
    force: Force = False,  # noqa: FBT002 - a switch of the command line
    quiet: Quiet = False,  # noqa: FBT002
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Search, train the best again, train the winner in full. The same command resumes a run."""
    since = time.monotonic()  # before libraries are loaded, which takes seconds
    given = {
        "space": space,
        "task": task,
        "method": method,
        "evaluator": evaluator,
        "guard": guard,
        "selection": selection,
        "memory": memory,
        "objective": objective or None,
        "constraint": constraint or None,
        "scheduler": scheduler,
        "fidelity": fidelity,
        "calibration": None if calibration is None else str(calibration),
        "baselines": baselines,
        "export": export,
        "preset": preset,
        "trials": trials,
        "max_failures": max_failures,
        "epochs": epochs,
        "budget": budget,
        "workers": workers,
        "executor": executor,
        "asynchronous": asynchronous,
        "trial_timeout": trial_timeout,
        "top_k": top_k,
        "seed": seed,
        "device": device,
        "execution": execution,
        "graph": graph,
        "deterministic": deterministic,
        "augment": augment,
        "exclude": exclude,
        "audit": audit,
        "storage": storage,
        "tensorboard": tensorboard,
        "mlflow": mlflow,
    }

    def settled() -> Config:
        from nas.job.config import make_config
        from nas.job.method_names import is_own

        settings = make_config(values(config, given, sets), where=str(config or "command line"))
        announce(settings.space)
        if is_own(settings.method):
            announce(settings.method)
        return settings

    def job(progress: Progress, stop: StopRequest) -> Result:
        from nas.budget.clock import Clock
        from nas.job.search_run import run

        settings = settled()
        clock = Clock(settings.budget, since=since)
        return run(
            settings,
            out=out,
            force=force,
            progress=progress,
            stop=stop,
            clock=clock,
            tell=teller(progress, yes=yes),
        )

    if preview:
        look_only(settled, as_json=as_json)
    else:
        run_job(job, quiet=quiet, as_json=as_json)


def look_only(settled: Callable[[], Config], *, as_json: bool) -> None:
    """Shows what a search would cost."""
    with errors():
        from nas.job.search_run import look

        found = look(settled())
        say(json.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))


def teller(progress: Progress, *, yes: bool) -> Tell | None:
    """Shows a preview; on a terminal asks whether to go on where it is beyond an hour.

    None where $NAS_PREVIEW is off.
    """
    from nas.budget.preview import HOUR_S
    from nas.console import LiveProgress

    if os.environ.get(PREVIEW) == "off" or follows():
        return None

    def tell(found: Preview) -> bool:
        for line in found.lines():
            progress.note(line)
        if yes or found.seconds <= HOUR_S or not sys.stdin.isatty():
            return True
        return progress.ask("begin?") if isinstance(progress, LiveProgress) else True

    return tell
