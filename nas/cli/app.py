"""What all commands share: the application, common options, and errors as messages with exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nas import __version__
from nas.errors import SCREEN, DismissedError, NasError, StorageError, describe, printable
from nas.training.launch import follows, launched

ORDER = (
    *("search", "retrain", "predict", "report", "draw", "export", "serve", "dashboard", "check"),
    *("validate", "audit", "calibrate", "benchmark", "spaces", "doctor"),
)
"""The commands as help lists them: what is done with a run, what before one, helpers."""

Run = Annotated[Path, typer.Argument(help="A finished run's folder.")]
OwnSpace = Annotated[
    str | None, typer.Option("--space", help="The run's space, where it is your own code: FILE.py:FUNCTION.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say only warnings, errors and the result.")]
SWITCHES = ("--tensorboard", "--mlflow")
"""Options whose value may be left out."""


class Commands(TyperGroup):
    """The commands; an error that any of them foresees is one message and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 - typer's signature
        """Their names, as help lists them."""
        return list(ORDER)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Runs a command."""
        with errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    help="""Neural architecture search: from a data set to a found architecture and its trained model.

\b
nas search --preview    say what a first search, on digits, would cost
nas search              begin it; the same command resumes it
nas COMMAND --help      say what a command does, and all its options""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """What is asked of the engine without a command."""
    if version:
        say(f"nas-engine {__version__}")
        raise typer.Exit


@contextmanager
def errors() -> Iterator[None]:
    """Foreseen errors as one message on standard error and their exit code."""
    try:
        yield
    except DismissedError as error:  # rank 0 has said it
        raise typer.Exit(error.exit_code) from error
    except NasError as error:
        say(f"error: {_rank()}{error}", limit=SCREEN, err=True)
        raise typer.Exit(error.exit_code) from error
    except BrokenPipeError:  # whoever read the output has had enough, which typer knows
        raise
    except OSError as error:
        what = f": {error.filename}" if error.filename else ""
        say(f"error: {error.strerror or error}{what}; the same command goes on from there", err=True)
        raise typer.Exit(StorageError.exit_code) from error
    except SystemExit as error:  # of a user's code that runs outside of a trial
        say(f"error: {_rank()}{describe(error)}", limit=SCREEN, err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        if not follows():
            say("stopped at once; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from error


def _rank() -> str:
    """Which rank speaks, where it is not the only one or the first."""
    found = launched() if follows() else None
    return "" if found is None else f"rank {found[0]}: "


def say(text: str, *, limit: int | None = None, err: bool = False) -> None:
    """Prints text for people; what a file or a name put into it cannot steer the terminal."""
    typer.echo(printable(text, limit=limit), err=err)


def warned(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Shows a warning as `warnings.showwarning` does, but without the line of the source that gave it."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    if not follows():
        say(f"WARNING: {kind}{message}", err=True)


class Printable(logging.Formatter):
    """Log lines for people, see `say`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without anything that steers a terminal."""
        return printable(super().format(record))


def spelt_out(arguments: Sequence[str]) -> list[str]:
    """A command line in which the `SWITCHES` that stand alone have the value `auto`."""
    following = [*arguments, "-"][1:]
    return [
        f"{word}=auto" if word in SWITCHES and after.startswith("-") else word
        for word, after in zip(arguments, following, strict=True)
    ]


def announce(path: str | None) -> None:
    """Says that code from outside the engine is about to run, and lets a module in this folder be found.

    Only then: whatever else lies here could otherwise take the place of a library that is not installed.

    path: of a space or method; nothing is said of the engine's own, and of None.
    """
    from nas.space.loading import is_plugin

    if path is not None and is_plugin(path):
        if not follows():
            say(f"running your code: {path}", err=True)
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
