"""`nas search`, `nas retrain`, `nas calibrate`: jobs that can be stopped; the same command resumes them."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.app import (
    ConfigFile,
    Json,
    Quiet,
    Sets,
    StopRequest,
    announce,
    app,
    say,
    values,
    with_settings,
)
from nas.run.config import TASK, Config, make_config
from nas.searchers.method_names import is_own
from nas.training.launch import follows

if TYPE_CHECKING:
    from nas.results.result import Result
    from nas.run.budget import Preview, Tell
    from nas.show.progress import Progress

Force = Annotated[
    bool, typer.Option("--force", help="Go on although the data changed, or a database names another writer.")
]
PREVIEW = "NAS_PREVIEW"
"""The environment variable that leaves the preview of a search out, where it is `off`."""
RIVALS = {
    "random": "random search at equal cost",
    "largest": "largest of these",
    "default": "default architecture",
}
FILES = ("report.html", "MODEL_CARD.md", "network.png", "search.png", "front.png", "alphas.png", "health.png")
"""What a run may leave behind for people, beside its model and the pictures of its cells."""


@app.command()
@with_settings()
def search(
    *,
    given: dict[str, object],
    preview: Annotated[
        bool, typer.Option("--preview", help="Only say what the search would cost; nothing is written.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Begin without asking, however long it is estimated to take.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. [default: results/SPACE-TASK-METHOD]")
    ] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search, train the best again, train the winner in full. The same command resumes a run."""
    since = time.monotonic()  # before libraries are loaded, which takes seconds
    settings = make_config(values(config, given, sets), where=str(config or "command line"))
    announce(settings.space)
    announce(settings.method if is_own(settings.method) else None)
    from nas.run.job import Clock
    from nas.run.pipeline import look, run_job

    if preview:
        found = look(settings)
        say(json.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))
        return
    with stoppable(quiet=quiet, plain=as_json) as (progress, stop):
        result = run_job(
            settings,
            out=out,
            force=force,
            progress=progress,
            stop=stop,
            clock=Clock(settings.budget, since=since),
            tell=teller(progress, yes=yes),
        )
    show(result, as_json=as_json)


@app.command(short_help="Train a known architecture from scratch and test it.")
@with_settings(
    (
        *("preset", "seed", "device", "execution", "graph", "export", "pictures", "deterministic"),
        *("tensorboard", "mlflow", "augment", "exclude"),
    )
)
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
    config: ConfigFile = None,
    sets: Sets = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a known architecture from scratch and measure its test accuracy. The same command resumes."""
    from nas.results.result import architecture_of
    from nas.run.pipeline import retrain as train_again

    assignments = [*(sets or []), *([f"retrain.epochs={epochs}"] if epochs is not None else [])]
    announce(space)
    with stoppable(quiet=quiet, plain=as_json) as (progress, stop):
        result = train_again(
            architecture_of(source, space=space),
            task,
            out=out,
            space=space,
            settings=values(config, {"task": task, **given}, assignments),
            force=force,
            progress=progress,
            stop=stop,
        )
    show(result, as_json=as_json)


@app.command(short_help="Measure which cheap estimates rank like long training.")
@with_settings(("space", "task", "preset", "seed", "device"))
def calibrate(
    *,
    given: dict[str, object],
    architectures: Annotated[int, typer.Option(help="Random architectures that are trained for long.")] = 16,
    epochs: Annotated[int, typer.Option(help="Epochs of the long training, the truth.")] = 12,
    repeats: Annotated[int, typer.Option(help="Long trainings of each architecture.")] = 2,
    threshold: Annotated[
        float, typer.Option(help="Kendall's tau that a fidelity must surely exceed to be trusted.")
    ] = 0.4,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the outcome. [default: results/calibrate-SPACE-TASK]")
    ] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure which cheap estimates rank architectures like long training does. The same command resumes."""
    with stoppable(quiet=quiet, plain=as_json) as (progress, stop):
        from nas.evaluate.calibration import Settings
        from nas.run.calibrate import calibrate as run

        default = {name: Config.model_fields[name].default for name in ("space", "task")}
        settings = default | values(config, given, sets)
        announce(str(settings["space"]))
        found = run(
            str(settings["space"]),
            str(settings["task"]),
            Settings(architectures, epochs, repeats, threshold),
            out=out,
            config=settings,
            progress=progress,
            stop=stop,
        )
    say(json.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))


# -- what a job tells -----------------------------------------------------------------------------------


@contextmanager
def stoppable(*, quiet: bool, plain: bool) -> Iterator[tuple[Progress, StopRequest]]:
    """Progress and signals of a command that can be stopped; of several ranks only rank 0 speaks.

    quiet, plain: as `nas.show.progress.reporter` takes them.
    """
    from nas.errors import Stopped
    from nas.show.progress import Silent, reporter

    with StopRequest() as stop:
        try:
            with nullcontext(Silent()) if follows() else reporter(plain=plain, quiet=quiet) as progress:
                yield progress, stop
        except Stopped as stopped:
            if not follows():
                say(f"{stopped}; the same command goes on from here", err=True)
            raise typer.Exit(stop.exit_code) from stopped


def teller(progress: Progress, *, yes: bool) -> Tell | None:
    """Shows a preview; on a terminal asks whether to go on where it is beyond an hour.

    None where $NAS_PREVIEW is off.
    """
    from nas.run.budget import HOUR_S
    from nas.show.progress import LiveProgress

    if os.environ.get(PREVIEW) == "off" or follows():
        return None

    def tell(found: Preview) -> bool:
        for line in found.lines():
            progress.note(line)
        if yes or found.seconds <= HOUR_S or not sys.stdin.isatty():
            return True
        return progress.ask("begin?") if isinstance(progress, LiveProgress) else True

    return tell


def show(result: Result, *, as_json: bool) -> None:
    """The result in a few lines, or as JSON; of several ranks only rank 0 shows it."""
    if follows():
        return
    if not as_json:
        say("\n".join(_lines(result)))
        return
    answer = {
        "folder": str(result.folder),
        "choices": result.space.choices(result.genotype),
        "metrics": dict(result.metrics),
        "failures": result.failures,
    }
    say(json.dumps(answer))


def _lines(result: Result) -> Iterator[str]:
    m = defaultdict(lambda: math.nan, result.metrics)
    if result.space.notation:
        yield f"found        {result.space.notation.write(result.genotype)}"
    else:
        asked = result.space.asked(result.genotype)
        yield f"found        {', '.join(f'{name} {option}' for name, option in asked.items())}"
    problem = result.inputs.problem
    value, *ends = (problem.text(m[f"{problem.test}{end}"]) for end in ("", "_low", "_high"))
    yield f"test         {problem.words} {value} (95 % interval {' to '.join(ends)}), measured once"
    yield (
        f"network      {m['params']:,.0f} parameters, {m['macs']:,.0f} multiply-accumulates, "
        f"{m['latency_ms']:.2f} ms an image"
    )
    rivals = [
        f"{words} {problem.text(m[f'{name}_{problem.val}'])}"
        + (f" (p = {m[f'{name}_p']:.2g})" if f"{name}_p" in m else "")
        for name, words in RIVALS.items()
        if f"{name}_{problem.val}" in m
    ]
    if rivals and (first := f"first_{problem.val}") in m:
        yield f"baselines    first choice {problem.text(m[first])} on validation, {', '.join(rivals)}"
    failed, idle = result.failures, result.metrics.get("chance_trials", 0)
    if failed or idle:
        kinds = ", ".join(f"{number} {reason}" for reason, number in failed.items())
        troubles = [f"{sum(failed.values())} failed ({kinds})"] if failed else []
        troubles += [f"{idle:.0f} no better than guessing"] if idle else []
        yield f"trials       {m['trials']:,.0f}, {', '.join(troubles)}"
    yield f"model        {result.folder / 'model.safetensors'}"
    if (result.folder / "cells.png").exists():
        yield f"pictures     {result.folder / 'cells.png'}"
    yield from (f"             {result.folder / name}" for name in FILES if (result.folder / name).exists())
