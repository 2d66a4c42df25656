"""The `nas` command. Heavy libraries are imported inside the commands, so that help comes at once."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.errors import ConfigError, NasError

if TYPE_CHECKING:
    from nas.console import LiveProgress, PlainProgress
    from nas.result import Result
    from nas.signals import StopRequest

app = typer.Typer(
    help="Neural architecture search: from a data set to a found architecture and its trained model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Force = Annotated[bool, typer.Option("--force", help="Go on although the data changed since the run began.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. --set retrain.epochs=100."),
]
SPACE = "Name, module:function or file.py:function."
TASK = "digits, fashion_mnist, cifar10, cifar100, npz:PATH or folder:PATH."


@app.command()
def search(
    space: Annotated[str | None, typer.Option(help=f"{SPACE} [default: darts]")] = None,
    task: Annotated[str | None, typer.Option(help=f"{TASK} [default: digits]")] = None,
    method: Annotated[
        str | None, typer.Option(help="random, evolution, darts or darts2. [default: darts]")
    ] = None,
    evaluator: Annotated[
        str | None, typer.Option(help="trained or shared, for random and evolution. [default: trained]")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="quick, standard, nasbench201 or nasbench201-12. [default: quick]")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Trials of random and evolution.")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs of a trial, of a shared supernet, or of a differentiable search."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help='Time for trials or a differentiable search, e.g. "30m"; what is running is finished.'
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="How many of the best are trained again with fresh seeds.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Root of all randomness. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1. [default: auto]")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. [default: results/SPACE-TASK-METHOD]")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    sets: Sets = None,
    force: Force = False,  # noqa: FBT002 - a switch of the command line
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Search, train the best again, train the winner in full. The same command resumes a run."""
    given = {
        "space": space,
        "task": task,
        "method": method,
        "evaluator": evaluator,
        "preset": preset,
        "trials": trials,
        "epochs": epochs,
        "budget": budget,
        "top_k": top_k,
        "seed": seed,
        "device": device,
    }

    def job(progress: LiveProgress | PlainProgress, stop: StopRequest) -> Result:
        from nas.config import make_config
        from nas.search_run import run

        settings = make_config(_values(config, given, sets), where=str(config or "command line"))
        _announce(settings.space)
        return run(settings, out=out, force=force, progress=progress, stop=stop)

    _run_job(job, as_json=as_json)


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
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    sets: Sets = None,
    force: Force = False,  # noqa: FBT002
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Train a known architecture from scratch and measure its test accuracy. The same command resumes."""
    given = {"task": task, "preset": preset, "seed": seed, "device": device}

    def job(progress: LiveProgress | PlainProgress, stop: StopRequest) -> Result:
        from nas.retrain_run import retrain as train_again

        assignments = [*(sets or []), *([f"retrain.epochs={epochs}"] if epochs is not None else [])]
        if space is not None:
            _announce(space)
        return train_again(
            _architecture(source, space),
            task,
            out=out,
            space=space,
            settings=_values(config, given, assignments),
            force=force,
            progress=progress,
            stop=stop,
        )

    _run_job(job, as_json=as_json)


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
    with _errors():
        from nas.files import prepare_folder
        from nas.result import draw_architecture, exists, graphs_of

        if space is not None and exists(Path(source)):
            raise ConfigError(
                f"--space is for a genotype's text, but {source} is a file or folder; remove it"
            )
        if space is not None:
            _announce(space)
        architecture = _architecture(source, space)
        graphs = graphs_of(architecture)
        folder = prepare_folder(out)
        draw_architecture(folder, graphs, title=str(architecture["space"]))
        typer.echo(f"{folder / 'cells.svg'}\n{folder / 'cells.png'}")


@app.command()
def spaces(as_json: Json = False) -> None:  # noqa: FBT002
    """List the search spaces that come with the engine."""
    with _errors():
        from nas.registry import bundled, load

        found = [load(name) for name in bundled()]
        rows = [
            {
                "name": space.name,
                "decisions": len(space.decisions),
                "size": str(space.size),
                "settings": {k: v for k, v in space.settings.items() if k not in ("classes", "in_channels")},
            }
            for space in found
        ]
        if as_json:
            typer.echo(json.dumps(rows))
            return
        for row in rows:
            settings = "  ".join(f"{k}={v}" for k, v in row["settings"].items())  # type: ignore[attr-defined]
            typer.echo(f"{row['name']:14}{row['decisions']:>4} decisions  {row['size']:>10}  {settings}")


@app.command()
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
    with _errors():
        from nas import devices
        from nas.config import override
        from nas.registry import load
        from nas.retrain_run import offer
        from nas.task import load_task
        from nas.validate import validate as check

        _announce(space)
        data = load_task(task).to(devices.resolve(device))
        report = check(
            load(space, offer(data), **override({}, [s.removeprefix("space_settings.") for s in sets or []])),
            data,
        )
        typer.echo(json.dumps(report.to_dict()) if as_json else "\n".join(report.lines()))


@app.command()
def doctor(as_json: Json = False) -> None:  # noqa: FBT002
    """Say what this machine offers: versions, devices, data sets that can be loaded."""
    with _errors():
        from nas.doctor import examine

        findings = examine()
        if as_json:
            typer.echo(json.dumps(findings))
        else:
            typer.echo("\n".join(f"{name:20}{value}" for name, value in findings.items()))


def main() -> None:
    """The console script: every foreseen error becomes one clear message and an exit code.

    0 done, 1 a fault of ours, 2 usage or settings, 3 data or space, 4 no valid model, 130 and 143 signals.
    """
    # So that `module:function` finds a user's module here, behind everything that is installed.
    sys.path.append(str(Path.cwd()))
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    app()


def _run_job(job: Callable[[LiveProgress | PlainProgress, StopRequest], Result], *, as_json: bool) -> None:
    from nas.console import reporter
    from nas.resumable import Stopped
    from nas.signals import StopRequest

    with _errors(), reporter(quiet=as_json) as progress, StopRequest() as stop:
        try:
            result = job(progress, stop)
        except Stopped as stopped:
            progress.note(f"{stopped}; the same command goes on from here")
            raise typer.Exit(stop.exit_code) from stopped
    _show(result, as_json=as_json)


def _show(result: Result, *, as_json: bool) -> None:
    if as_json:
        choices = result.space.choices(result.genotype)
        answer = {"folder": str(result.folder), "choices": choices, "metrics": dict(result.metrics)}
        typer.echo(json.dumps(answer))
        return
    m = result.metrics
    found = result.space.notation.write(result.genotype) if result.space.notation else None
    lines = [
        f"found        {found or result.space.choices(result.genotype)}",
        f"test         accuracy {m['test_acc']:.4f} (95 % interval {m['test_acc_low']:.4f} to "
        f"{m['test_acc_high']:.4f}), measured once",
        f"network      {m['params']:,.0f} parameters, {m['macs']:,.0f} multiply-accumulates, "
        f"{m['latency_ms']:.2f} ms an image",
        f"model        {result.folder / 'model.safetensors'}",
        f"pictures     {result.folder / 'cells.png'}",
    ]
    others = ("network.png", "search.png", "alphas.png")
    lines += [f"             {result.folder / name}" for name in others if (result.folder / name).exists()]
    typer.echo("\n".join(lines))


@contextmanager
def _errors() -> Iterator[None]:
    """Foreseen errors as one message on standard error and their exit code."""
    try:
        yield
    except NasError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped at once; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from error


def _values(config: Path | None, given: Mapping[str, object], sets: list[str] | None) -> dict[str, Any]:
    """The file's settings, then the options, then `--set`."""
    from nas.config import override, read_toml

    values = read_toml(config) if config is not None else {}
    return override(values | {k: v for k, v in given.items() if v is not None}, sets or [])


def _architecture(source: str, space: str | None) -> Mapping[str, Any]:
    from nas.registry import load
    from nas.result import describe_architecture, exists, read_architecture

    if exists(Path(source)) or space is None:
        return read_architecture(Path(source))
    loaded = load(space)
    if loaded.notation is None:
        raise ConfigError(
            f"space {space!r} has no notation for genotypes; give a folder or architecture.json"
        )
    return describe_architecture(loaded, loaded.notation.read(source), {})


def _announce(space: str) -> None:
    """Says that code from outside the engine is about to run."""
    from nas.registry import is_plugin

    if is_plugin(space):
        sys.stderr.write(f"running your code: {space}\n")
