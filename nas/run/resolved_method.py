"""Resolves the differentiable method of a configuration: its paper's settings, and the user's on top."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping

from nas.errors import FAULTS, ConfigError, NasError, describe, staying, unknown
from nas.oneshot.darts_pt import ByPerturbation
from nas.oneshot.early_stopping import Guards
from nas.oneshot.methods import METHODS, Method
from nas.run.config import Config
from nas.run.overrides import change, settings_of, typed
from nas.run.presets import Preset, Published
from nas.searchers.method_names import OWN
from nas.space.loading import own_function
from nas.training.recipe import Recipe


def method_of(config: Config, base: Preset, given: Method | None, pace: Mapping[str, object]) -> Method:
    """The differentiable method: as published for the preset, with the user's settings on top.

    One that was given in Python keeps its own recipe, unless settings change it. pace: those of its recipe
    that hold for every phase.
    """
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
        speed = base.alpha_speed if config.alpha_speed is None else config.alpha_speed
        method = fitted(method, weights, alpha_speed=speed)
    elif config.method_settings or config.alpha_speed is not None:
        raise ConfigError(
            "method_settings or alpha_speed are given, but the method is made already; make it with these "
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
        guards=settings_of(Guards(), config.guards, "guards") if config.guard else None,
        selection=ByPerturbation() if config.selection == "perturbation" else method.selection,
    )


def make_method(name: str, make: Callable[..., object], settings: Mapping[str, object]) -> Method:
    """The method that a function makes of keyword settings; numbers may be written as text.

    Raises:
        ConfigError: when it takes no such setting, fails, or returns something else.
    """
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
        "alpha_speed": config.alpha_speed is not None,
        "seed_alphas": config.seed_alphas is not None,
        "constraint": bool(config.constraint),
    }
    for name, is_set in given.items():
        if is_set:
            raise ConfigError(
                f"{name} is set, but method {method.name!r} learns no alphas; remove it or "
                "choose another method"
            )


def fitted(method: Method, recipe: Recipe, *, alpha_speed: float) -> Method:
    """The method with the weights' recipe of a job, its alphas so many times as fast as published."""
    update = dataclasses.replace(method.update, lr=method.update.lr * alpha_speed)
    return dataclasses.replace(method, weights=recipe, update=update)
