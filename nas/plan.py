"""Resolves a configuration against its preset: every recipe and number that a job will use."""

from __future__ import annotations

import dataclasses
import reprlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from nas.config import Config
from nas.errors import ConfigError, unknown
from nas.oneshot.bilevel import Bilevel
from nas.presets import preset
from nas.recipe import Recipe, compressed
from nas.searchers import RandomSearch, RegularizedEvolution, Searcher


@dataclass(frozen=True)
class Plan:
    """What a job will do, nothing left open; the fields are those of `Preset`.

    searcher: proposes the trials; None for a differentiable search.
    budget_s: seconds of search, or None.
    size: offered to the space while searching. final_size: of the last network, on top of the searched one's.
    full_size: whether the space's own full size comes before `final_size`.
    """

    trial: Recipe
    search: Bilevel
    shared: Recipe
    final: Recipe
    searcher: Searcher | None
    trials: int
    top_k: int
    top_k_epochs: int
    search_images: int | None
    final_images: int | None
    budget_s: float | None
    size: Mapping[str, object]
    final_size: Mapping[str, object]
    full_size: bool

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        searcher = {} if self.searcher is None else dataclasses.asdict(self.searcher)  # type: ignore[call-overload]
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        recipes = {k: dataclasses.asdict(v) for k, v in fields.items() if isinstance(v, Recipe | Bilevel)}
        return (
            fields
            | recipes
            | {
                "searcher": searcher,
                "size": dict(self.size),
                "final_size": dict(self.final_size),
            }
        )


def make_plan(config: Config) -> Plan:
    """The plan of a configuration.

    Raises:
        ConfigError: naming the table and the setting that is unknown or out of range.
    """
    base = preset(config.preset)
    epochs = {} if config.epochs is None else {"epochs": config.epochs}
    shared_trials = config.evaluator == "shared"
    weights = change(base.search.weights, epochs | config.search, "search")
    alphas = {f.name: f.type for f in dataclasses.fields(Bilevel) if f.name.startswith("alpha_")}
    for name in config.alphas:
        if name not in alphas or name == "alpha_betas":
            raise ConfigError(f"alphas: {unknown('setting', name, alphas.keys() - {'alpha_betas'})}")
    rates = {name: _number(value, f"alphas.{name}") for name, value in config.alphas.items()}
    order: typing.Literal[1, 2] = 2 if config.method == "darts2" else 1
    images = base.search_images if config.search_images is None else config.search_images
    top_k = config.top_k or base.top_k
    _refuse_unused(config, top_k)
    return Plan(
        trial=change(base.trial, ({} if shared_trials else epochs) | config.trial, "trial"),
        search=dataclasses.replace(base.search, weights=weights, order=order, **rates),  # type: ignore[arg-type]
        shared=change(base.shared, (epochs if shared_trials else {}) | config.shared, "shared"),
        final=change(base.final, config.retrain, "retrain"),
        searcher=_searcher(config),
        trials=config.trials or base.trials,
        top_k=top_k,
        top_k_epochs=config.top_k_epochs or base.top_k_epochs,
        search_images=images or None,
        final_images=None if "epochs" in config.retrain else base.final_images,
        budget_s=config.budget,
        size=base.size,
        final_size=base.final_size,
        full_size=base.full_size,
    )


def change(recipe: Recipe, table: Mapping[str, object], where: str) -> Recipe:
    """`recipe` with the settings of a table; a new number of epochs compresses its schedule.

    Text that spells a number counts as that number, and a whole float as an integer.
    """
    types = {f.name: str(f.type) for f in dataclasses.fields(Recipe)}
    values: dict[str, object] = {}
    for name, value in table.items():
        if name not in types:
            raise ConfigError(f"{where}: {unknown('recipe setting', name, types)}")
        values[name] = _typed(value, types[name], f"{where}.{name}")
    epochs = values.get("epochs")
    try:
        if isinstance(epochs, int) and epochs >= 1:
            recipe = compressed(recipe, epochs)
        return dataclasses.replace(recipe, **values)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _refuse_unused(config: Config, top_k: int) -> None:
    """Settings of trainings that this job will not make."""
    again_only = config.is_differentiable or config.evaluator == "shared"
    if "epochs" in config.trial and again_only:
        raise ConfigError(
            "trial.epochs is set, but here architectures are trained for top_k_epochs only; set that"
        )
    unused = {"top_k_epochs": config.top_k_epochs is not None, "trial": again_only and bool(config.trial)}
    for name, is_set in unused.items():
        if is_set and top_k == 1:
            raise ConfigError(
                f"{name} is set, but with top_k 1 nothing is trained again; remove it or raise top_k"
            )


def _searcher(config: Config) -> Searcher | None:
    if config.is_differentiable:
        return None
    if config.method == "random":
        return RandomSearch()
    known = ("population", "tournament")
    for name in config.evolution:
        if name not in known:
            raise ConfigError(f"evolution: {unknown('setting', name, known)}")
    sizes = {name: int(_number(v, f"evolution.{name}", whole=True)) for name, v in config.evolution.items()}
    population = sizes.get("population", RegularizedEvolution.population)
    return RegularizedEvolution(population, sizes.get("tournament", min(10, population)))


def _typed(value: object, kind: str, where: str) -> object:
    if kind == "int":
        return int(_number(value, where, whole=True))
    return _number(value, where) if kind == "float" else value


def _number(value: object, where: str, *, whole: bool = False) -> float:
    wanted = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(f"{where} is {reprlib.repr(value)}, but must be {wanted}")
    try:
        number = float(value)
    except ValueError as error:
        raise ConfigError(f"{where} is {reprlib.repr(value)}, but must be {wanted}") from error
    if whole and not number.is_integer():
        raise ConfigError(f"{where} is {reprlib.repr(value)}, but must be {wanted}")
    return number
