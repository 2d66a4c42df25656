"""The command that helps: `nas worker`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.app import SPACE, TASK, announce, app, errors
from nas.errors import ConfigError

if TYPE_CHECKING:
    from nas.workers.join import Home


@app.command()
def worker(
    folder: Annotated[Path | None, typer.Argument(help="The run's folder, where it can be reached.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Where the study is, instead of a folder: the path of a study.log.")
    ] = None,
    study: Annotated[str, typer.Option(help="The study's name.")] = "search",
    space: Annotated[
        str | None, typer.Option(help=f"{SPACE} Only where the study searches a space of your own.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help=f"{TASK} Only where the same images are elsewhere on this machine.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    scratch: Annotated[
        Path | None,
        typer.Option(help="Where trials are saved meanwhile, without a folder. [default: a temporary one]"),
    ] = None,
    pulse: Annotated[int | None, typer.Option(hidden=True)] = None,
    grace: Annotated[float, typer.Option(hidden=True)] = 10.0,
) -> None:
    """Do trials of a search that somebody has begun with `nas search`, here or on another machine."""
    from nas.console import reporter
    from nas.resumable import Stopped
    from nas.signals import StopRequest

    with errors(), reporter(quiet=pulse is not None) as progress, StopRequest() as stop:
        from nas.workers.pulse import Pulse

        signs = nullcontext() if pulse is None else Pulse(pulse, ask_to_stop=stop.ask, grace_s=grace)
        with signs:
            from nas.workers.join import join

            if space is not None:
                announce(space)
            home = _home(folder, storage, study, scratch)
            try:
                reason = join(
                    home, progress=progress, stop=stop, space=space, task=task, device=device, scratch=scratch
                )
            except Stopped as stopped:
                progress.note(f"{stopped}; its trial is left to others")
                raise typer.Exit(stop.exit_code) from stopped
            progress.note(f"nothing is left to do: {reason}")


def _home(folder: Path | None, storage: str | None, study: str, scratch: Path | None) -> Home:
    from nas.journal import journal_storage
    from nas.workers.join import Home, home_in

    if (folder is None) == (storage is None):
        raise ConfigError("a worker needs the run's folder or --storage, one of them")
    if folder is not None and scratch is not None:
        raise ConfigError("--scratch is for workers without the run's folder; remove it")
    if folder is not None:
        return home_in(folder)
    journal = Path(str(storage))
    if not journal.is_file():
        raise ConfigError(f"there is no journal {journal} (looked for {journal.resolve()})")
    return Home(journal_storage(journal), study)
