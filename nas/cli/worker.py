"""`nas worker`: help with the trials of a search that has begun."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.app import SPACE, TASK, Quiet, announce, app, say
from nas.cli.job import stoppable
from nas.errors import ConfigError

if TYPE_CHECKING:
    from nas.workers.join import Home


@app.command(short_help="Help with the trials of a search that has begun.")
def worker(
    folder: Annotated[Path | None, typer.Argument(help="The run's folder, where it can be reached.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where the trials are, instead of a folder: the URL of a database, or a study.log. "
            "[default with --study: $NAS_STORAGE]"
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="The run's name in the database, as run.json has it.")
    ] = None,
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
    quiet: Quiet = False,  # noqa: FBT002
    pulse: Annotated[int | None, typer.Option(hidden=True)] = None,
    grace: Annotated[float, typer.Option(hidden=True)] = 10.0,
) -> None:
    """Do trials of a search that somebody has begun with `nas search`, here or on another machine."""
    ending = "its trial is left to others"
    with stoppable(quiet=quiet, plain=pulse is not None, afterwards=ending) as (progress, stop):
        from nas.workers.pulse import Pulse

        signs = nullcontext() if pulse is None else Pulse(pulse, ask_to_stop=stop.ask, grace_s=grace)
        with signs:
            from nas.workers.join import join

            if space is not None:
                announce(space)
            home = _home(folder, storage, study, scratch)
            reason = join(
                home, progress=progress, stop=stop, space=space, task=task, device=device, scratch=scratch
            )
    say(f"nothing is left to do: {reason}", err=True)


def _home(folder: Path | None, storage: str | None, study: str | None, scratch: Path | None) -> Home:
    from nas.storage.address import VARIABLE
    from nas.workers.join import home_at, home_in

    if folder is None and storage is None and study is not None:
        storage = os.environ.get(VARIABLE)
    if storage is not None:
        if folder is not None:
            raise ConfigError(
                f"a run's folder says where its trials are: give {folder} or --storage, not both"
            )
        return home_at(storage, study)
    if folder is None:
        raise ConfigError(
            f"which search? give a worker the run's folder, or --study and --storage (or {VARIABLE})"
        )
    for name, value in {"--study": study, "--scratch": scratch}.items():
        if value is not None:
            raise ConfigError(f"{name} is for workers without the run's folder; remove it")
    return home_in(folder)
