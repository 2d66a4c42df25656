"""`nas report`, `nas draw`, `nas dashboard`, `nas check`: a run's folder is looked at."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.app import Json, OwnSpace, Run, StopRequest, announce, app, say
from nas.errors import ConfigError


@app.command(short_help="Write report.html of a run, or of several side by side.")
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, finished or not; several are compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file. [default: report.html in the run's folder, of several runs here]"),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(help="The space of a run, where it is your own code, so that its cells can be drawn."),
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(min=0.0, help="Power of a device at work, for an estimate of energy."),
    ] = None,
) -> None:
    """Write report.html: all that a run did and found, as one file that needs no network."""
    from nas.files.folder import MANIFEST, update_manifest
    from nas.show.report import REPORT, searched_space, write_report

    if len(runs) > 1 and (space is not None or watts is not None):
        raise ConfigError("--space and --watts are for the report of a single run; remove them")
    announce(space)
    target = out or (runs[0] / REPORT if len(runs) == 1 else Path(REPORT))
    loaded = None if space is None else searched_space(runs[0], space)
    size = write_report(runs, target, space=loaded, watts=watts)
    if target.resolve() == (runs[0] / REPORT).resolve() and (runs[0] / MANIFEST).is_file():
        update_manifest(runs[0], [REPORT])
    say(f"{target}  {size / 1e6:.2f} MB")


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
    from nas.files.folder import exists, prepare_folder
    from nas.results.result import architecture_of, graphs_of
    from nas.run.result_files import draw_architecture

    if space is not None and exists(Path(source)):
        raise ConfigError(f"--space is for a genotype's text, but {source} is a file or folder; remove it")
    announce(space)
    found = architecture_of(source, space=space)
    graphs = graphs_of(found)
    folder = prepare_folder(out)
    draw_architecture(folder, graphs, title=str(found["space"]))
    say(f"{folder / 'cells.svg'}\n{folder / 'cells.png'}")


@app.command(short_help="Show a run as it goes, in a browser.")
def dashboard(
    run: Annotated[Path, typer.Argument(help="A run's folder, finished or under way.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 for any free port.")] = 8080,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; at any but this machine's own, others can read the run."),
    ] = "127.0.0.1",
    space: OwnSpace = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Whether to open the page in a browser.")
    ] = True,
) -> None:
    """Show a run as it goes: its report, drawn anew when it changes, and its trials in Optuna's dashboard."""
    import webbrowser

    from nas.results.run_record import read_run
    from nas.show.dashboard import LOOPBACK, Live, serve
    from nas.show.report import render, searched_space

    def ready(url: str) -> None:
        say(f"report       {url}\ntrials       {url}dashboard\nstop with Ctrl-C")
        if browser:
            webbrowser.open(url)

    read_run(run)  # that it is one is said first
    if find_spec("optuna_dashboard") is None:
        raise ConfigError("the dashboard needs optuna-dashboard; pip install 'nas-engine[dashboard]'")
    announce(space)
    loaded = None if space is None else searched_space(run, space)
    if host not in LOOPBACK:
        say(f"WARNING: everybody who can reach {host} can read this run; there is no password", err=True)
    live = Live(run, lambda folder: render([folder], space=loaded), local=host in LOOPBACK)
    live.state()  # a database that is away is said now
    with StopRequest() as stop:
        serve(live, host, port, ready=ready, stop=stop)
    say("stopped", err=True)


@app.command(short_help="Say which files of a finished run were changed since.")
def check(folder: Run, as_json: Json = False) -> None:
    """Say which files of a finished run differ from what was recorded when it finished."""
    from nas.files.folder import check_manifest, damaged

    damage = check_manifest(folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "damage": damage}))
    elif not damage:
        typer.echo(f"{folder}: every file is as recorded")
    if damage:
        raise damaged(folder, damage)
