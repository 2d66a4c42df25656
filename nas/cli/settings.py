"""Options of the command line that are made from the settings of a job, and what is asked for by them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from nas.cli.app import SWITCHES
from nas.errors import ConfigError
from nas.files.tomlfile import override, read_toml
from nas.run.config import PANELS, Config
from nas.searchers.method_names import is_own

ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with any of these settings.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. --set retrain.epochs=100."),
]
PRESET = ("trials", "epochs", "top_k", "top_k_epochs", "seeds", "search_images", "alpha_speed")
"""Settings whose default is that of the preset."""


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
        fields = {
            name: field
            for name, field in Config.model_fields.items()
            if _panel(field) and name not in own and (names is None or name in names)
        }

        @wraps(command)
        def call(**values: Any) -> None:  # noqa: ANN401 - whatever the options hold
            given = {name: values.pop(name) for name in fields}
            command(given={n: v for n, v in given.items() if v not in (None, [])}, **values)

        options = [_option(name, field) for name, field in fields.items()]
        call.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own.values(), *options]]
        )
        call.__annotations__ = {p.name: p.annotation for p in [*own.values(), *options]}
        return call

    return wrapped


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of a setting; its text is read by the setting's own type."""
    flag, default = f"--{name.replace('_', '-')}", field.default
    switch = field.annotation is bool
    kind: Any = bool if switch else list[str] if get_origin(_plain(field.annotation)) is tuple else str
    help_text = field.description or ""
    if "[default:" not in help_text:
        words = name if default is True else "off" if default is False else default
        shown = "the preset's" if words is None and name in PRESET else words
        help_text += "" if shown is None else f" [default: {shown}]"
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if switch else flag,
        help=help_text,
        metavar=None if switch else ("[TEXT]" if flag in SWITCHES else "<str>"),
        rich_help_panel=PANELS[_panel(field)],
        show_default=False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _panel(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("panel", "")) if isinstance(extra, dict) else ""


def _plain(annotation: Any) -> Any:  # noqa: ANN401 - a type
    """A type without what is annotated to it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
