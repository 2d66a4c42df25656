"""What all commands share: the application, common options, and errors as messages with exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from nas import __version__
from nas.errors import ConfigError, DismissedError, NasError, StorageError, describe
from nas.text import SCREEN, printable
from nas.training.launch import follows, launched

ORDER = (
    *("search", "retrain", "predict", "report", "draw", "export", "serve", "dashboard", "check"),
    *("validate", "audit", "calibrate", "benchmark", "spaces", "doctor"),
)
"""The commands as help lists them, each a module: what is done with a run, what before one, helpers."""

app = typer.Typer(
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

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say only warnings, errors and the result.")]
Force = Annotated[bool, typer.Option("--force", help="Go on although the data changed since the run began.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. --set retrain.epochs=100."),
]
SWITCHES = ("--tensorboard", "--mlflow")
"""Options whose value may be left out."""


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,  # noqa: FBT002
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


def warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001 - the signature is that of warnings.showwarning
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """A warning for people: what it says, without the line of the source that said it."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    if not follows():
        say(f"WARNING: {kind}{message}", err=True)


class Printable(logging.Formatter):
    """Log lines for people, see `say`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without anything that steers a terminal."""
        return printable(super().format(record))


def values(config: Path | None, given: Mapping[str, object], sets: list[str] | None) -> dict[str, Any]:
    """The file's settings, then the options, then `--set`.

    Raises:
        ConfigError: when code to run is named in the file alone, which may have come with somebody's results.
    """
    from nas.files.tomlfile import override, read_toml
    from nas.searchers.method_names import is_own

    values = read_toml(config) if config is not None else {}
    asked = override({k: v for k, v in given.items() if v is not None}, sets or [])
    for name in ("space", "method"):
        code = values.get(name)
        if isinstance(code, str) and is_own(code, optuna=name == "method") and name not in asked:
            raise ConfigError(
                f"{config} names code that is not the engine's, {name} = {code!r}; to run it, name it on the "
                f"command line, too: --{name} {code}"
            )
    return override(values | {k: v for k, v in given.items() if v is not None}, sets or [])


def spelt_out(arguments: Sequence[str]) -> list[str]:
    """A command line in which the `SWITCHES` that stand alone have the value `auto`."""
    following = [*arguments, "-"][1:]
    return [
        f"{word}=auto" if word in SWITCHES and after.startswith("-") else word
        for word, after in zip(arguments, following, strict=True)
    ]


def announce(path: str) -> None:
    """Says that code from outside the engine is about to run, and lets a module in this folder be found.

    Only then: whatever else lies here could otherwise take the place of a library that is not installed.
    """
    from nas.space.loading import is_plugin

    if is_plugin(path):
        if not follows():
            say(f"running your code: {path}", err=True)
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
