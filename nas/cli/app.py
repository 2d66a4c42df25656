"""What all commands share: the application, options made from settings, errors as messages, and signals."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Self, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from nas import __version__
from nas.errors import SCREEN, ConfigError, DismissedError, NasError, StorageError, describe, printable
from nas.files.atomic import override, read_toml
from nas.run.config import PANELS, Config
from nas.searchers.method_names import is_own
from nas.training.launch import follows, launched

Run = Annotated[Path, typer.Argument(help="A finished run's folder.")]
OwnSpace = Annotated[
    str | None, typer.Option("--space", help="The run's space, where it is your own code: FILE.py:FUNCTION.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say only warnings, errors and the result.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with any of these settings.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. --set retrain.epochs=100."),
]
SWITCHES = ("--tensorboard", "--mlflow")
"""Options whose value may be left out."""
PRESET = ("trials", "epochs", "top_k", "top_k_epochs", "repeats", "search_images", "alpha_lr_scale")
"""Settings whose default is that of the preset."""


class Commands(TyperGroup):
    """The commands; an error that any of them foresees is one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's signature
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


# -- what is said ---------------------------------------------------------------------------------------


@contextmanager
def errors() -> Iterator[None]:
    """Foreseen errors as one message on standard error and their exit code."""
    try:
        yield
    except DismissedError as error:  # rank 0 has said it
        raise typer.Exit(error.exit_code) from error
    except (NasError, SystemExit) as error:  # the latter of a user's code that runs outside of a trial
        rank = launched() if follows() else None
        words = str(error) if isinstance(error, NasError) else describe(error)
        say(f"error: {'' if rank is None else f'rank {rank[0]}: '}{words}", limit=SCREEN, err=True)
        raise typer.Exit(error.exit_code if isinstance(error, NasError) else 1) from error
    except BrokenPipeError:  # whoever read the output has had enough, which typer knows
        raise
    except OSError as error:
        what = f": {error.filename}" if error.filename else ""
        say(f"error: {error.strerror or error}{what}; the same command goes on from there", err=True)
        raise typer.Exit(StorageError.exit_code) from error
    except (RuntimeError, MemoryError) as error:
        from nas.user_code import reason_of  # and torch, which whoever ran out of memory has loaded

        if reason_of(error) != "oom":
            raise
        words = next((f" ({line})" for line in str(error).splitlines()), "")
        say(f"error: out of memory{words}; use a smaller batch or network, or free memory", err=True)
        raise typer.Exit(StorageError.exit_code) from error
    except KeyboardInterrupt as error:
        if not follows():
            say("stopped at once; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from error


def say(text: str, *, limit: int | None = None, err: bool = False) -> None:
    """Prints text for people; what a file or a name put into it cannot steer the terminal."""
    typer.echo(printable(text, limit=limit), err=err)


def warned(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Shows a warning as `warnings.showwarning` does, but without the line of the source that gave it."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    if not follows():
        say(f"WARNING: {kind}{message}", err=True)


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


# -- settings as options --------------------------------------------------------------------------------


def spelt_out(arguments: Sequence[str]) -> list[str]:
    """A command line in which the `SWITCHES` that stand alone have the value `auto`."""
    following = [*arguments, "-"][1:]
    return [
        f"{word}=auto" if word in SWITCHES and after.startswith("-") else word
        for word, after in zip(arguments, following, strict=True)
    ]


def values(config: Path | None, given: Mapping[str, object], sets: Sequence[str] | None) -> dict[str, Any]:
    """The file's settings, then the options, then `--set`.

    Raises:
        ConfigError: when code to run is named in the file alone, which may have come with somebody's results.
    """
    values = read_toml(config) if config is not None else {}
    asked = override(dict(given), list(sets or []))
    for name in ("space", "method"):
        code = values.get(name)
        if isinstance(code, str) and is_own(code, optuna=name == "method") and name not in asked:
            raise ConfigError(
                f"{config} names code that is not the engine's, {name} = {code!r}; to run it, name it on the "
                f"command line, too: --{name} {code}"
            )
    return override(values | dict(given), list(sets or []))


def with_settings(names: Sequence[str] | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds an option for each setting to a command, which gets those that were given as `given`.

    names: of settings; all that have a panel unless given. A command's own parameter of the same name stays.
    """

    def wrapped(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = {name: p for name, p in signature.parameters.items() if name != "given"}
        options = [
            _option(name, field, panel)
            for name, field in Config.model_fields.items()
            if name not in own and (names is None or name in names) and (panel := _panel(field))
        ]

        @wraps(command)
        def call(**values: Any) -> None:  # noqa: ANN401 - whatever the options hold
            given = {option.name: values.pop(option.name) for option in options}
            command(given={n: v for n, v in given.items() if v not in (None, [])}, **values)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own.values(), *options]]
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        return call

    return wrapped


def _option(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    """The option of a setting; its text is read by the setting's own type."""
    flag, default, help_text = f"--{name.replace('_', '-')}", field.default, field.description or ""
    switch, plain = field.annotation is bool, field.annotation
    if get_origin(plain) is Annotated:
        plain = get_args(plain)[0]
    kind: Any = bool if switch else list[str] if get_origin(plain) is tuple else str
    words = {True: name, False: "off", None: "the preset's" if name in PRESET else None}
    shown = words[default] if default is None or switch else default
    if "[default:" not in help_text and shown is not None:
        help_text += f" [default: {shown}]"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if switch else flag,
        help=help_text,
        metavar=None if switch else ("[TEXT]" if flag in SWITCHES else "<str>"),
        rich_help_panel=PANELS[panel],
        show_default=False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _panel(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("panel", "")) if isinstance(extra, dict) else ""


# -- signals --------------------------------------------------------------------------------------------

POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""The last two are what batch systems such as SLURM are asked to send some time before the end."""


class StopRequest:
    """While entered, SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 set `number` instead of killing the process.

    number: the first of them that came, or 0. Later on, SIGINT, or SIGTERM for the second time, raises
      KeyboardInterrupt where the program is; a batch system's warnings may be followed by SIGTERM.
    """

    def __init__(self) -> None:
        self.number = 0
        self._terminated = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Whether the job was asked to stop."""
        return self.number != 0

    @property
    def exit_code(self) -> int:
        """What a shell or a batch system expects of a process that ends so: 130 after SIGINT, else 143."""
        return 128 + (signal.SIGINT if self.number in (0, signal.SIGINT) else signal.SIGTERM)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in POLITE}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        insists = number == signal.SIGINT or (number == signal.SIGTERM and self._terminated)
        self._terminated |= number == signal.SIGTERM
        if self.number and insists:
            raise KeyboardInterrupt
        self.number = self.number or number
