"""`nas dashboard`: the live view of a run."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.app import announce, app, errors, say
from nas.errors import ConfigError

if TYPE_CHECKING:
    from nas.space.space import Space

Browser = Annotated[
    bool, typer.Option("--browser/--no-browser", help="Whether to open the page in a browser.")
]


@app.command(short_help="Show a run as it goes, in a browser.")
def dashboard(
    run: Annotated[Path, typer.Argument(help="A run's folder, finished or under way.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 for any free port.")] = 8080,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; at any but this machine's own, others can read the run."),
    ] = "127.0.0.1",
    space: Annotated[
        str | None, typer.Option(help="The run's space, where it is your own code: FILE.py:FUNCTION.")
    ] = None,
    browser: Browser = True,  # noqa: FBT002 - a switch of the command line
) -> None:
    """Show a run as it goes: its report, drawn anew when it changes, and its trials in Optuna's dashboard."""
    with errors():
        from nas.cli.job import StopRequest
        from nas.results.run_record import read_run
        from nas.show.dashboard import LOOPBACK, Live, serve
        from nas.space.loading import load

        record = read_run(run)
        if find_spec("optuna_dashboard") is None:
            raise ConfigError("the dashboard needs optuna-dashboard; pip install 'nas-engine[dashboard]'")
        if space is not None:
            announce(space)
        own = None if space is None else load(space, **record["space"]["settings"])
        local = host in LOOPBACK
        if not local:
            say(f"WARNING: everybody who can reach {host} can read this run; there is no password", err=True)
        live = Live(run, _renderer(own), local=local)
        live.state()  # a database that is away is said now
        with StopRequest() as stop:
            serve(live, host, port, ready=lambda url: _tell(url, browser=browser), stop=stop)
        say("stopped", err=True)


def _renderer(space: Space | None) -> Callable[[Path], str]:
    """Makes the report of a folder."""
    from nas.show.report import render

    return lambda folder: render([folder], space=space)


def _tell(url: str, *, browser: bool) -> None:
    say(f"report       {url}\ntrials       {url}dashboard\nstop with Ctrl-C")
    if browser:
        import webbrowser

        webbrowser.open(url)
