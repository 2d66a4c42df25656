"""Resolves a configuration against its preset: every recipe and number that a job will use."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from nas.data.problem import CLASSIFICATION, Problem
from nas.errors import FAULTS, ConfigError, NasError, describe, shown, staying, unknown
from nas.evaluate.calibration import chosen_fidelity
from nas.run.config import Config
from nas.run.job import Plan
from nas.run.presets import Preset, Published, preset
from nas.searchers.factory import make_searcher
from nas.searchers.fidelity import Fidelity, Ladder, geometric, parse_fidelity, parse_ladder
from nas.searchers.goals import Goals, parse_goals
from nas.searchers.method_names import OWN, SHARED
from nas.space.latency import LATENCY
from nas.space.loading import own_function
from nas.training.recipe import Recipe, compressed

if typing.TYPE_CHECKING:  # only a job with a supernet loads what trains one
    from nas.oneshot.methods import Method
    from nas.oneshot.path_training import Sharing

T = typing.TypeVar("T")
UNBOUNDED = 10**6
"""Trials from which on only the time ends a search."""
EXACT = 2**53
"""Whole numbers below it are floats of their own."""
MIN_STOPPED = 3
"""Epochs of a trial that can be stopped early: a forecast needs two, and one to save."""


def make_plan(config: Config, method: Method | None = None, *, problem: Problem = CLASSIFICATION) -> Plan:
    """The plan of a configuration.

    method: one that was given in Python, which then is not looked up. problem: of the task, whose metric is
    what is searched for unless the configuration says otherwise.

    Raises:
        ConfigError: naming the table and the setting that is unknown or out of range.
    """
    base = preset(config.preset)
    epochs = {} if config.epochs is None else {"epochs": config.epochs}
    shared = config.shares_weights
    goals = parse_goals(config.objective, config.constraint, default=problem.objective)
    tuned = dict(config.searcher)
    earlier, proxies = str(tuned.pop("earlier", "")), str(tuned.pop("proxies", ""))
    if (earlier or proxies) and config.method != "guided":
        raise ConfigError(f"searcher: method {config.method!r} takes no earlier runs or proxies; use guided")
    if config.warm_start == "parent":
        tuned = {"morphism": 0.5, **tuned}
    images = base.search_images if config.search_images is None else config.search_images
    top_k = config.top_k or (base.shared_top_k if config.method in SHARED else base.top_k)
    _refuse_unused(config, top_k)
    pace: dict[str, object] = {"execution": config.execution} if config.execution != "auto" else {}
    pace |= {} if config.graph else {"graph": False}
    own_epochs = {} if shared or config.is_differentiable else epochs
    trial = change(base.trial, pace | own_epochs | config.trial, "trial")
    ladder = _ladder(config, trial)
    _refuse_idle(config, goals, ladder, problem)
    return Plan(
        trial=trial,
        search=method_of(config, base, method, pace) if config.is_differentiable else None,
        supernet=change(base.supernet, pace | (epochs if shared else {}) | config.supernet, "supernet"),
        sharing=_sharing(config) if config.shares_weights or config.sharing else None,
        final=change(base.final, pace | config.retrain, "retrain"),
        searcher=None if config.is_differentiable else make_searcher(config.method, tuned, goals=goals),
        goals=goals,
        earlier=earlier,
        proxies=tuple(name.strip() for name in proxies.split(",") if name.strip()),
        ladder=ladder,
        repeats=config.repeats or base.repeats,
        trials=config.trials or (base.shared_trials if config.method in SHARED else base.trials),
        top_k=top_k,
        top_k_epochs=config.top_k_epochs or base.top_k_epochs,
        search_images=images or None,
        final_images=None if "epochs" in config.retrain else base.final_images,
        size=base.size,
        final_size=base.final_size,
        full_size=base.full_size,
    )


def _sharing(config: Config) -> Sharing:
    from nas.oneshot.path_training import Sharing

    return settings_of(Sharing(), config.sharing, "sharing")


def _refuse_unused(config: Config, top_k: int) -> None:
    """Settings of trainings that this job will not make."""
    again_only = config.shares_weights or (config.is_differentiable and not config.baselines)
    if "epochs" in config.trial and again_only:
        raise ConfigError(
            "trial.epochs is set, but here architectures are trained for top_k_epochs only; set that"
        )
    unused = {
        "top_k_epochs": config.top_k_epochs is not None,
        "repeats": config.repeats is not None,
        "trial": again_only and bool(config.trial),
    }
    for name, is_set in unused.items():
        if is_set and top_k == 1 and not config.baselines:
            raise ConfigError(
                f"{name} is set, but with top_k 1 and no baselines nothing is trained again; remove it or "
                "raise top_k"
            )


def _refuse_idle(config: Config, goals: Goals, ladder: Ladder, problem: Problem) -> None:
    """A latency table that decides nothing, and early stopping where it cannot stop anything."""
    if config.latency_table is not None and LATENCY not in goals.metrics:
        raise ConfigError(
            f"latency_table is set, but nothing decides by {LATENCY}; add it to objective or constraint"
        )
    if not config.early_stop:
        return
    if not problem.is_share:
        raise ConfigError(f"early_stop forecasts shares in [0, 1], which {problem.val} is not; remove it")
    if goals.objectives != (problem.objective,):
        raise ConfigError(
            f"early_stop forecasts {problem.val}, so it must be the only objective; remove early_stop"
        )
    rung = ladder.rungs[-1]
    if rung.epochs < MIN_STOPPED or rung != Fidelity(rung.epochs):
        raise ConfigError(
            f"early_stop needs trials of at least {MIN_STOPPED} epochs at full size, got {rung}; remove it"
        )


def _ladder(config: Config, trial: Recipe) -> Ladder:
    """The rungs of the trials: given, grown by `eta` up to the trial's epochs, or those epochs alone."""
    if config.scheduler == "fixed":
        text = config.fidelity
        if text == "auto":
            text = chosen_fidelity(Path(str(config.calibration)), space=config.space, task=config.task)
        return Ladder((Fidelity(trial.epochs) if text is None else parse_fidelity(text),))
    if config.rungs is not None:
        return parse_ladder(config.rungs)
    return geometric(1, trial.epochs, config.eta)


# -- methods by gradients ----------------------------------------------------------------------------


def method_of(config: Config, base: Preset, given: Method | None, pace: Mapping[str, object]) -> Method:
    """The differentiable method: as published for the preset, with the user's settings on top.

    One that was given in Python keeps its own recipe, unless settings change it. pace: those of its recipe
    that hold for every phase.
    """
    from nas.oneshot.darts_pt import ByPerturbation
    from nas.oneshot.early_stopping import Guards
    from nas.oneshot.methods import METHODS

    published = base.published.get(config.method, Published())
    epochs = {} if config.epochs is None else {"epochs": config.epochs}
    if given is None and config.method.startswith(OWN):
        raise ConfigError(
            f"method {config.method!r} was put together in Python; call nas.search with it, or write a "
            "function that returns it and name it as FILE.py:FUNCTION"
        )
    if given is None:
        make = METHODS[config.method] if config.method in METHODS else own_function(config.method)
        method = make_method(config.method, make, {**published.settings, **config.method_settings})
        weights = change(base.search, published.recipe, f"preset {config.preset}")
        speed = base.alpha_lr_scale if config.alpha_lr_scale is None else config.alpha_lr_scale
        update = dataclasses.replace(method.update, lr=method.update.lr * speed)
        method = dataclasses.replace(method, weights=weights, update=update)
    elif config.method_settings or config.alpha_lr_scale is not None:
        raise ConfigError(
            "method_settings or alpha_lr_scale are given, but the method is made already; make it with these "
            "settings"
        )
    else:
        method = given
    if not method.learns_alphas:
        _refuse_alphas(config, method)
    return dataclasses.replace(
        method,
        weights=change(method.weights, {**pace, **epochs, **config.search}, "search"),
        update=settings_of(method.update, config.alphas, "alphas"),
        guards=settings_of(Guards(), config.guard_settings, "guard_settings") if config.guard else None,
        selection=ByPerturbation() if config.selection == "perturbation" else method.selection,
    )


def make_method(name: str, make: Callable[..., object], settings: Mapping[str, object]) -> Method:
    """The method that a function makes of keyword settings; numbers may be written as text.

    Raises:
        ConfigError: when it takes no such setting, fails, or returns something else.
    """
    from nas.oneshot.methods import Method

    known = inspect.signature(make).parameters
    values = {}
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"method {name!r}: {unknown('setting', key, known)}")
        kind = type(known[key].default).__name__
        values[key] = typed(value, kind, f"method_settings.{key}")
    try:
        with staying():
            method = make(**values)
    except NasError:
        raise
    except FAULTS as error:
        raise ConfigError(f"method {name!r} failed: {describe(error)}") from error
    if not isinstance(method, Method):
        raise ConfigError(f"method {name!r} returned {type(method).__name__}, wanted a nas.Method")
    return method


def _refuse_alphas(config: Config, method: Method) -> None:
    """What needs alphas that move: their settings, and constraints, which are losses of theirs."""
    given = {
        "alphas": bool(config.alphas),
        "alpha_lr_scale": config.alpha_lr_scale is not None,
        "seed_alphas": config.seed_alphas is not None,
        "constraint": bool(config.constraint),
    }
    for name, is_set in given.items():
        if is_set:
            raise ConfigError(
                f"{name} is set, but method {method.name!r} learns no alphas; remove it or "
                "choose another method"
            )


# -- tables of settings ------------------------------------------------------------------------------


def settings_of(value: T, table: Mapping[str, object], where: str) -> T:
    """A frozen value with the settings of a table, each of the kind that it has there.

    Text that spells a number counts as that number, and a whole float as an integer.

    Raises:
        ConfigError: for an unknown name, another kind, or what the value itself refuses.
    """
    fields = {f.name: str(f.type) for f in dataclasses.fields(value)}  # type: ignore[arg-type]
    known = {name: kind for name, kind in fields.items() if not kind.startswith("tuple")}
    changes: dict[str, object] = {}
    for name, given in table.items():
        if name not in known:
            raise ConfigError(f"{where}: {unknown('setting', name, known)}")
        changes[name] = typed(given, known[name], f"{where}.{name}")
    try:
        return dataclasses.replace(value, **changes)  # type: ignore[type-var]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def change(recipe: Recipe, table: Mapping[str, object], where: str) -> Recipe:
    """`recipe` with the settings of a table; a new number of epochs compresses its schedule."""
    if "epochs" in table:
        epochs = int(_number(table["epochs"], f"{where}.epochs", whole=True))
        recipe = compressed(recipe, epochs) if epochs >= 1 else recipe
    return settings_of(recipe, table, where)


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
