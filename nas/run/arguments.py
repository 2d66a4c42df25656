"""What whole jobs take as arguments: a name or an object made in Python, and settings beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from nas.data.task import Task
from nas.errors import ConfigError
from nas.oneshot.method import Method
from nas.run.config import Config
from nas.space.space import Space

_KINDS: Mapping[str, tuple[type[Space | Task | Method], str]] = {
    "space": (Space, "a name, FILE.py:FUNCTION or a nas.Space"),
    "task": (Task, "a name or a nas.Task, as nas.task_from_arrays and nas.task_from_datasets make it"),
    "method": (Method, "a name or a nas.Method; a searcher of your own runs in a nas.Study"),
}


def name_of(role: str, given: object, *, who: str) -> str:
    """How a run records its space, task or method: what it was called, or the name that it has itself.

    who: the function whose argument it is, for errors.
    """
    kind, wanted = _KINDS[role]
    if isinstance(given, str):
        return given
    if not isinstance(given, kind):
        raise ConfigError(f"{who}: {role} is a {type(given).__name__}, wanted {wanted}")
    return given.name


def with_names(settings: Mapping[str, object] | None, names: Mapping[str, str]) -> dict[str, object]:
    """Settings together with what a function's own arguments say.

    Raises:
        ConfigError: when a setting says something else than its argument.
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"settings is a {type(settings).__name__}, wanted a mapping from names to values")
    for name, value in names.items():
        if settings and settings.get(name, value) != value:
            raise ConfigError(
                f"settings: {name} is {settings[name]!r}, but the argument says {value!r}; give one of them"
            )
    return {**(settings or {}), **names}


def refuse_others(config: Config, used: Collection[str], *, what: str) -> None:
    """Raises ConfigError where a setting is given that a kind of job does not read. what: that kind."""
    for name, default in Config():
        if name not in {*used, "space", "task"} and getattr(config, name) != default:
            raise ConfigError(f"{name} is set, but {what} uses only {', '.join(used)}; remove it")


def refuse_made(space: object, config: Config) -> None:
    """Raises ConfigError where settings are given for a space that is made already."""
    if isinstance(space, Space) and config.space_settings:
        raise ConfigError(
            "space_settings are given, but the space is made already; make it with these settings"
        )
