"""Searchers by the names that users type, made from plain settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

from nas.errors import ConfigError, unknown
from nas.searchers.evolution import RegularizedEvolution
from nas.searchers.goals import Goals
from nas.searchers.local import LocalSearch
from nas.searchers.nsga2 import Nsga2
from nas.searchers.optuna_search import ALIASES, OptunaSearch
from nas.searchers.predictor_guided import Guided
from nas.searchers.random_search import RandomSearch
from nas.searchers.searcher import Searcher
from nas.searchers.spos import Generational
from nas.types import Genotype

OPTUNA = "optuna:"
"""What stands before the name of an Optuna sampler."""
_CLASSES: Mapping[str, type[Searcher]] = MappingProxyType(
    {
        "random": RandomSearch,
        "evolution": RegularizedEvolution,
        "local": LocalSearch,
        "nsga2": Nsga2,
        "guided": Guided,
        "spos": Generational,
    }
)
SEARCHERS = (*_CLASSES, *ALIASES)
"""Every name that is not an Optuna sampler's own."""


def settings_of(name: str) -> dict[str, object]:
    """The settings that a searcher takes as plain values, with their defaults; Optuna's are not known."""
    if name not in _CLASSES:
        return {}
    return {f.name: f.default for f in _fields(name) if isinstance(f.default, int | float | str)}


def make_searcher(
    name: str,
    settings: Mapping[str, object] | None = None,
    *,
    goals: Goals | None = None,
    size: Callable[[Genotype], float] | None = None,
) -> Searcher:
    """The searcher of that name: one of `SEARCHERS`, or `optuna:` and a class of `optuna.samplers`.

    size: how large an architecture is, for searchers that can start with the largest.

    Raises:
        ConfigError: for an unknown name or setting, or a value of another type or out of range.
    """
    settings, goals = dict(settings or {}), goals or Goals()
    if name in ALIASES or name.startswith(OPTUNA):
        sampler = ALIASES.get(name, name.removeprefix(OPTUNA))
        return OptunaSearch(sampler, settings, goals)
    if name not in _CLASSES:
        raise ConfigError(unknown("searcher", name, SEARCHERS) + f", or {OPTUNA}NAME for an Optuna sampler")
    known = settings_of(name)
    values = {key: _checked(name, key, value, known) for key, value in settings.items()}
    if name == "evolution" and "population" in values and "tournament" not in values:
        values["tournament"] = min(int(str(known["tournament"])), int(str(values["population"])))
    if any(f.name == "goals" for f in _fields(name)):
        values["goals"] = goals
    if name == "guided":
        values["size"] = size
    return _CLASSES[name](**values)


def _fields(name: str) -> tuple[dataclasses.Field[object], ...]:
    return dataclasses.fields(_CLASSES[name])  # type: ignore[arg-type]


def _checked(name: str, key: str, value: object, known: Mapping[str, object]) -> object:
    """The value as the default's type; a whole float or a number in text counts as that number."""
    if key not in known:
        problem = unknown("setting", key, known) if known else f"got {key!r}, but there are no settings"
        raise ConfigError(f"{name}: {problem}")
    kind = type(known[key])
    convert: Callable[[str], object] = kind
    try:
        if isinstance(value, bool):
            raise ValueError
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
        return convert(str(value))
    except ValueError as error:
        wanted = {int: "a whole number", float: "a number", str: "text"}[kind]
        raise ConfigError(f"{name}: {key} is {value!r}, but must be {wanted}") from error
