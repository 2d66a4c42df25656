"""Presets of the whole job: which recipe every phase uses, and how much of everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from nas.errors import ConfigError, unknown
from nas.training.recipe import DARTS_SEARCH, Recipe, compressed
from nas.training.recipe import PRESETS as RECIPES


@dataclass(frozen=True)
class Published:
    """What a paper does differently from its benchmark's common settings.

    recipe: changes to the recipe of the shared weights.
    settings: of the method itself, see `nas.oneshot.methods`.
    """

    recipe: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """Defaults of a job; a user's settings go before them.

    trial: recipe of one low-epoch evaluation; its epochs are the default fidelity.
    search: recipe of the shared weights in a differentiable search.
    alpha_lr_scale: factor on the methods' learning rates of the alphas, for searches of fewer steps.
    published: by method, what its paper does differently.
    supernet: recipe of a supernet that trials inherit weights from.
    final: recipe of the last training, on training and validation images together.
    trials: number of black-box trials; shared_trials: of those on shared weights by their own method.
    top_k, top_k_epochs, repeats: how many of the best are trained again, for how long, how often.
    shared_top_k: how many after a method on shared weights alone, which filter and cannot select.
    search_images: at most so many images, training and validation together, before the last training.
    final_images: about so many images, repeats counted, bound the last training unless its epochs are set.
    size: settings offered to a space of the engine's own while searching, `final_size` for the last training.
    full_size: whether the last network takes the space's own full size.
    """

    trial: Recipe
    search: Recipe
    supernet: Recipe
    final: Recipe
    trials: int
    shared_trials: int
    top_k: int
    shared_top_k: int
    top_k_epochs: int
    repeats: int
    alpha_lr_scale: float = 1.0
    published: Mapping[str, Published] = field(default_factory=dict)
    search_images: int | None = None
    final_images: int | None = None
    size: Mapping[str, object] = field(default_factory=dict)
    final_size: Mapping[str, object] = field(default_factory=dict)
    full_size: bool = False


_QUICK = Preset(
    trial=compressed(RECIPES["quick"], 8),
    search=dataclasses.replace(compressed(RECIPES["quick"], 6), lr_min=0.001),
    alpha_lr_scale=67.0,  # 3e-4 to 0.02: some 200 steps go as far as the published 20,000
    supernet=compressed(RECIPES["quick"], 100),
    # Some 1,200 steps of a plain network come .5 points further than at the rate of the short trainings.
    final=dataclasses.replace(compressed(RECIPES["quick"], 20), lr=0.2, weight_decay=1e-3),
    trials=12,
    shared_trials=200,
    top_k=2,
    shared_top_k=10,
    top_k_epochs=10,
    repeats=3,
    search_images=2560,
    final_images=180_000,
    size=MappingProxyType({"width": 8, "cells": 3}),
    final_size=MappingProxyType({"width": 16}),
)

# Liu et al. 2019 for the search and the last training; 12 epochs of the same recipe for one trial, by steps.
_STANDARD = Preset(
    trial=dataclasses.replace(
        RECIPES["standard"], epochs=12, auxiliary=0.0, drop_path=0.0, cutout=0, schedule="step"
    ),
    search=DARTS_SEARCH,
    published=MappingProxyType(
        {
            "gdas": Published({"epochs": 250}),
            "snas": Published({"epochs": 150}),
            "drnas": Published({"lr": 0.1, "lr_min": 0.0}),
            # To 0 in the paper, to 0.001 in the code.
            "pcdarts": Published({"batch": 256, "lr": 0.1, "lr_min": 0.0}),
            "gaea": Published({"batch": 256, "lr": 0.1, "lr_min": 0.0}),
            "fairdarts": Published({"batch": 128, "lr": 0.005}),
            "pdarts": Published({"batch": 96, "lr_min": 0.0, "epochs": 75}),
        }
    ),
    supernet=Recipe(epochs=200, batch=256, lr=0.1, weight_decay=5e-4, clip=5.0),
    final=RECIPES["standard"],
    trials=100,
    shared_trials=1000,
    top_k=4,
    shared_top_k=50,
    top_k_epochs=50,
    repeats=3,
    full_size=True,
)

# Dong & Yang 2020, table 1 and §4: one recipe for 12 and 200 epochs, their settings of weight sharing. The
# rate of a trial moves by steps, so that one of a few epochs comes down, too.
_SHARING = Recipe(epochs=50, batch=64, lr=0.025, lr_min=0.001, weight_decay=5e-4, clip=5.0, schedule="epoch")
# The released codes of SDARTS, β-DARTS, DrNAS (where that of SNAS is from), GAEA and IS-DARTS.
_PLAIN = MappingProxyType({"weight_decay": 3e-4, "nesterov": False})
_PLAIN_100 = MappingProxyType({"epochs": 100, **_PLAIN})
_NASBENCH201 = Preset(
    trial=dataclasses.replace(RECIPES["nasbench201-12"], schedule="step"),
    search=_SHARING,
    published=MappingProxyType(
        {
            "gdas": Published({"epochs": 250}),
            "snas": Published(_PLAIN_100),
            "drnas": Published(_PLAIN_100, {"alpha_lr": 3e-4, "warmup": 0.2}),
            "sdarts-rs": Published(_PLAIN_100),
            "sdarts-adv": Published(_PLAIN_100),
            "beta-darts": Published(_PLAIN_100, {"end": 50.0}),
            "gaea": Published({"epochs": 25, **_PLAIN}, {"parts": 1}),
            "is-darts": Published({"epochs": 30, "weight_decay": 3e-4}),
        }
    ),
    supernet=dataclasses.replace(_SHARING, epochs=250),
    final=RECIPES["nasbench201"],
    trials=100,
    shared_trials=1000,
    top_k=1,
    shared_top_k=50,
    top_k_epochs=12,
    repeats=3,
)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "quick": _QUICK,
        "standard": _STANDARD,
        "nasbench201": _NASBENCH201,
        "nasbench201-12": dataclasses.replace(_NASBENCH201, final=RECIPES["nasbench201-12"]),
    }
)
"""`quick`: minutes on two cores. `standard`: DARTS as published. `nasbench201`: as that benchmark."""


def preset(name: str) -> Preset:
    """The preset of that name."""
    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    return PRESETS[name]
