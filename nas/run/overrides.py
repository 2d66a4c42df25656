"""Settings of a table on top of a recipe or another frozen value, each of the kind that it has there."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping

from nas.errors import ConfigError, shown, unknown
from nas.training.recipe import Recipe, compressed

T = typing.TypeVar("T")
EXACT = 2**53
"""Whole numbers below it are floats of their own."""


def settings_of(value: T, table: Mapping[str, object], where: str) -> T:
    """A frozen value with the settings of a table, each of the kind that it has there.

    Raises:
        ConfigError: for an unknown name, another kind, or what the value itself refuses.
    """
    known = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
    plain = {k: v for k, v in known.items() if isinstance(v, bool | int | float | str)}
    changes: dict[str, object] = {}
    for name, given in table.items():
        if name not in plain:
            raise ConfigError(f"{where}: {unknown('setting', name, plain)}")
        kind = "bool" if isinstance(plain[name], bool) else type(plain[name]).__name__
        changes[name] = typed(given, kind, f"{where}.{name}")
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def change(recipe: Recipe, table: Mapping[str, object], where: str) -> Recipe:
    """`recipe` with the settings of a table; a new number of epochs compresses its schedule.

    Text that spells a number counts as that number, and a whole float as an integer.
    """
    types = {f.name: str(f.type) for f in dataclasses.fields(Recipe)}
    values: dict[str, object] = {}
    for name, value in table.items():
        if name not in types:
            raise ConfigError(f"{where}: {unknown('recipe setting', name, types)}")
        values[name] = typed(value, types[name], f"{where}.{name}")
    epochs = values.get("epochs")
    try:
        if isinstance(epochs, int) and epochs >= 1:
            recipe = compressed(recipe, epochs)
        return dataclasses.replace(recipe, **values)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def typed(value: object, kind: str, where: str) -> object:
    """A number as the kind of number that is named, even if it is spelled as text; anything else as it is."""
    if kind == "int":
        return int(_number(value, where, whole=True))
    return _number(value, where) if kind == "float" else value


def _number(value: object, where: str, *, whole: bool = False) -> float:
    wanted = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{where} is {shown(value)}, but must be {wanted}")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{where} is {shown(value)}, but must be {wanted}") from error
    if whole and not (number.is_integer() and abs(number) < EXACT):
        raise ConfigError(f"{where} is {shown(value)}, but must be {wanted}")
    return number
