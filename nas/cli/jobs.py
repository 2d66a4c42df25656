"""Commands that train: `nas search` and `nas retrain`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.app import (
    SPACE,
    TASK,
    Force,
    Json,
    MLflow,
    Sets,
    TensorBoard,
    announce,
    app,
    errors,
    say,
    values,
)
from nas.cli.look import architecture
from nas.launch import follows

if TYPE_CHECKING:
    from nas.config import Config
    from nas.preview import Preview
    from nas.progress import Progress
    from nas.result import Result
    from nas.signals import StopRequest
    from nas.timing import Tell

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
            help="What is optimised, e.g. val_acc, -latency_ms or 'val_acc - 0.01*latency_ms'; "
            "several make a Pareto search. [default: val_acc]"
        ),
    ] = None,
    constraint: Annotated[
        list[str] | None, typer.Option(help='A bound, e.g. "params<=3e6"; may be repeated.')
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
        str | None, typer.Option(help="quick, standard, nasbench201 or nasbench201-12. [default: quick]")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Trials of random and evolution.")] = None,
    max_failures: Annotated[
        int | None,
        typer.Option(help="So many failed trials in a row end the search. [default: 10]"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of a trial, of a shared supernet, or of a differentiable search."),
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
        typer.Option(help="Processes that train trials, a number or auto. [default: 1, this one]"),
    ] = None,
    trial_timeout: Annotated[
        str | None,
        typer.Option(help='A trial that takes longer, e.g. "2h", is begun once more, and then fails.'),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="How many of the best are trained again with fresh seeds.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Root of all randomness. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1. [default: auto]")] = None,
    execution: Annotated[
        str | None,
        typer.Option(help="How cells are run: plain, batched, kernels (Triton), or auto. [default: auto]"),
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
        "trial_timeout": trial_timeout,
        "top_k": top_k,
        "seed": seed,
        "device": device,
        "execution": execution,
        "graph": graph,
        "deterministic": deterministic,
        "exclude": exclude,
        "audit": audit,
        "storage": storage,
        "tensorboard": tensorboard,
        "mlflow": mlflow,
    }

    def settled() -> Config:
        from nas.config import make_config
        from nas.method_names import is_own

        settings = make_config(values(config, given, sets), where=str(config or "command line"))
        announce(settings.space)
        if is_own(settings.method):
            announce(settings.method)
        return settings

    def job(progress: Progress, stop: StopRequest) -> Result:
        from nas.clock import Clock
        from nas.search_run import run

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
        run_job(job, as_json=as_json)


def look_only(settled: Callable[[], Config], *, as_json: bool) -> None:
    """Shows what a search would cost."""
    with errors():
        from nas.search_run import look

        found = look(settled())
        say(json.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))


def teller(progress: Progress, *, yes: bool) -> Tell | None:
    """Shows a preview; on a terminal asks whether to go on where it is beyond an hour.

    None where $NAS_PREVIEW is off.
    """
    from nas.console import LiveProgress
    from nas.preview import HOUR_S

    if os.environ.get(PREVIEW) == "off" or follows():
        return None

    def tell(found: Preview) -> bool:
        for line in found.lines():
            progress.note(line)
        if yes or found.seconds <= HOUR_S or not sys.stdin.isatty():
            return True
        return progress.ask("begin?") if isinstance(progress, LiveProgress) else True

    return tell


@app.command()
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
    epochs: Annotated[int | None, typer.Option(help="Epochs of training.")] = None,
    seed: Annotated[int | None, typer.Option(help="Root of all randomness. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1. [default: auto]")] = None,
    execution: Annotated[str | None, typer.Option(help="As in search. [default: auto]")] = None,
    graph: Annotated[bool | None, typer.Option(help="As in search. [default: graph]")] = None,
    deterministic: Annotated[
        bool | None, typer.Option("--deterministic", help="As in search. [default: off]")
    ] = None,
    tensorboard: TensorBoard = None,
    mlflow: MLflow = None,
    exclude: Annotated[str | None, typer.Option(help="As in search. [default: nothing]")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    sets: Sets = None,
    force: Force = False,  # noqa: FBT002
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
        "exclude": exclude,
        "deterministic": deterministic,
        "tensorboard": tensorboard,
        "mlflow": mlflow,
    }

    def job(progress: Progress, stop: StopRequest) -> Result:
        from nas.retrain_run import retrain as train_again

        assignments = [*(sets or []), *([f"retrain.epochs={epochs}"] if epochs is not None else [])]
        if space is not None:
            announce(space)
        return train_again(
            architecture(source, space),
            task,
            out=out,
            space=space,
            settings=values(config, given, assignments),
            force=force,
            progress=progress,
            stop=stop,
        )

    run_job(job, as_json=as_json)


def run_job(job: Callable[[Progress, StopRequest], Result], *, as_json: bool) -> None:
    """Runs a job that can be stopped and resumed, and shows its result; of several ranks only rank 0 does."""
    from nas.console import reporter
    from nas.progress import Silent
    from nas.resumable import Stopped
    from nas.signals import StopRequest

    teller: AbstractContextManager[Progress] = nullcontext(Silent()) if follows() else reporter(quiet=as_json)
    with errors(), teller as progress, StopRequest() as stop:
        try:
            result = job(progress, stop)
        except Stopped as stopped:
            progress.note(f"{stopped}; the same command goes on from here")
            raise typer.Exit(stop.exit_code) from stopped
    if not follows():
        show(result, as_json=as_json)


def show(result: Result, *, as_json: bool) -> None:
    """The result in a few lines, or as JSON."""
    if as_json:
        choices = result.space.choices(result.genotype)
        answer = {
            "folder": str(result.folder),
            "choices": choices,
            "metrics": dict(result.metrics),
            "failures": result.failures,
        }
        say(json.dumps(answer))
        return
    m = result.metrics
    model = f"model        {result.folder / 'model.safetensors'}"
    found = result.space.notation.write(result.genotype) if result.space.notation else None
    lines = [
        f"found        {found or result.space.choices(result.genotype)}",
        f"test         accuracy {m['test_acc']:.4f} (95 % interval {m['test_acc_low']:.4f} to "
        f"{m['test_acc_high']:.4f}), measured once",
        f"network      {m['params']:,.0f} parameters, {m['macs']:,.0f} multiply-accumulates, "
        f"{m['latency_ms']:.2f} ms an image",
        model,
    ]
    if (result.folder / "cells.png").exists():
        lines.append(f"pictures     {result.folder / 'cells.png'}")
    if {"random_val_acc", "largest_val_acc", "first_val_acc"} <= m.keys():
        lines.insert(
            3,
            f"baselines    first choice {m['first_val_acc']:.4f} on validation, random search at equal cost "
            f"{m['random_val_acc']:.4f} (p = {m['random_p']:.2g}), largest {m['largest_val_acc']:.4f}",
        )
    if troubles := _troubles(result):
        lines.insert(lines.index(model), f"trials       {m['trials']:,.0f}, {troubles}")
    others = (
        "report.html",
        "MODEL_CARD.md",
        "network.png",
        "search.png",
        "front.png",
        "alphas.png",
        "health.png",
    )
    lines += [f"             {result.folder / name}" for name in others if (result.folder / name).exists()]
    say("\n".join(lines))


def _troubles(result: Result) -> str:
    """Failed trials by reason and those that learned nothing, in words; empty where there are none."""
    failed = sum(result.failures.values())
    kinds = ", ".join(f"{number} {reason}" for reason, number in result.failures.items())
    idle = result.metrics.get("chance_trials", 0)
    parts = [
        *([f"{failed} failed ({kinds})"] if failed else []),
        *([f"{idle:.0f} no better than guessing"] if idle else []),
    ]
    return ", ".join(parts)
