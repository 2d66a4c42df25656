"""Searchers by the names that users type, made from plain settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from nas.errors import ConfigError, unknown
from nas.searchers.auto import Auto
from nas.searchers.evolution import Generational, Nsga2, RegularizedEvolution
from nas.searchers.goals import Goals
from nas.searchers.method_names import OPTUNA
from nas.searchers.optuna_search import ALIASES, OptunaSearch
from nas.searchers.predictor_guided import Guided
from nas.searchers.searcher import LocalSearch, RandomSearch, Searcher

_CLASSES: Mapping[str, type[Searcher]] = {
    "random": RandomSearch,
    "evolution": RegularizedEvolution,
    "local": LocalSearch,
    "nsga2": Nsga2,
    "guided": Guided,
    "auto": Auto,
    "spos": Generational,
}
SEARCHERS = (*_CLASSES, *ALIASES)
"""Every name that is not an Optuna sampler's own."""


def make_searcher(
    name: str, settings: Mapping[str, object] | None = None, *, goals: Goals | None = None
) -> Searcher:
    """The searcher of that name: one of `SEARCHERS`, or `optuna:` and a class of `optuna.samplers`.

    Raises:
        ConfigError: for an unknown name or setting, or a value of another type or out of range.

    Example:
        nas.make_searcher("evolution", {"population": 20})
    """
    settings, goals = dict(settings or {}), goals or Goals()
    if name in ALIASES or name.startswith(OPTUNA):
        sampler = ALIASES.get(name, name.removeprefix(OPTUNA))
        return OptunaSearch(sampler, settings, goals)
    if name not in _CLASSES:
        raise ConfigError(unknown("searcher", name, SEARCHERS) + f", or {OPTUNA}NAME for an Optuna sampler")
    fields = {f.name: f.default for f in dataclasses.fields(_CLASSES[name])}  # type: ignore[arg-type]
    plain = {key: default for key, default in fields.items() if isinstance(default, int | float)}
    values = {key: _checked(name, key, value, plain) for key, value in settings.items()}
    if name == "evolution" and "population" in values and "tournament" not in values:
        values["tournament"] = min(int(str(plain["tournament"])), int(str(values["population"])))
    if "goals" in fields:
        values["goals"] = goals
    return _CLASSES[name](**values)


def _checked(name: str, key: str, value: object, known: Mapping[str, object]) -> object:
    """The value as the type of the default in `known`; a whole float or a number in text is that number."""
    if key not in known:
        problem = unknown("setting", key, known) if known else f"got {key!r}, but there are no settings"
        raise ConfigError(f"{name}: {problem}")
    is_whole = isinstance(known[key], int)
    try:
        if isinstance(value, bool):
            raise ValueError
        if is_whole and isinstance(value, float) and value.is_integer():
            return int(value)
        return int(str(value)) if is_whole else float(str(value))
    except ValueError as error:
        wanted = "a whole number" if is_whole else "a number"
        raise ConfigError(f"{name}: {key} is {value!r}, but must be {wanted}") from error
