"""What all commands share: the application, common options, and errors as messages with exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.errors import NasError, StorageError

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


@contextmanager
def errors() -> Iterator[None]:
    """Foreseen errors as one message on standard error and their exit code."""
    try:
        yield
    except NasError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        what = f": {error.filename}" if error.filename else ""
        typer.echo(f"error: {error.strerror or error}{what}; the same command goes on from there", err=True)
        raise typer.Exit(StorageError.exit_code) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped at once; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from error


def values(config: Path | None, given: Mapping[str, object], sets: list[str] | None) -> dict[str, Any]:
    """The file's settings, then the options, then `--set`."""
    from nas.config import override, read_toml

    values = read_toml(config) if config is not None else {}
    return override(values | {k: v for k, v in given.items() if v is not None}, sets or [])


def announce(space: str) -> None:
    """Says that code from outside the engine is about to run."""
    from nas.registry import is_plugin

    if is_plugin(space):
        sys.stderr.write(f"running your code: {space}\n")
