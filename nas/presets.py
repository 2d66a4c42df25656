"""Presets of the whole job: which recipe every phase uses, and how much of everything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from nas.errors import ConfigError, unknown
from nas.oneshot.bilevel import Bilevel
from nas.recipe import PRESETS as RECIPES
from nas.recipe import Recipe, compressed


@dataclass(frozen=True)
class Preset:
    """Defaults of a job; a user's settings go before them.

    trial: recipe of one low-epoch evaluation; its epochs are the default fidelity.
    search: the differentiable search.
    shared: recipe of a supernet that trials inherit weights from.
    final: recipe of the last training, on training and validation images together.
    trials: number of black-box trials.
    top_k, top_k_epochs, seeds: how many of the best are trained again, for how long, with how many seeds.
    search_images: at most so many images, training and validation together, before the last training.
    final_images: about so many images, repeats counted, bound the last training unless its epochs are set.
    size: settings offered to a space of the engine's own while searching, `final_size` for the last training.
    full_size: whether the last network takes the space's own full size.
    """

    trial: Recipe
    search: Bilevel
    shared: Recipe
    final: Recipe
    trials: int
    top_k: int
    top_k_epochs: int
    seeds: int
    search_images: int | None = None
    final_images: int | None = None
    size: Mapping[str, object] = field(default_factory=dict)
    final_size: Mapping[str, object] = field(default_factory=dict)
    full_size: bool = False


_QUICK = Preset(
    trial=compressed(RECIPES["quick"], 3),
    search=Bilevel(
        weights=dataclasses.replace(compressed(RECIPES["quick"], 8), lr_min=0.001),
        alpha_lr=0.02,
    ),
    shared=compressed(RECIPES["quick"], 100),
    final=compressed(RECIPES["quick"], 40),
    trials=20,
    top_k=3,
    top_k_epochs=5,
    seeds=2,
    search_images=2560,
    final_images=180_000,
    size=MappingProxyType({"width": 8, "cells": 5}),
    final_size=MappingProxyType({"width": 16}),
)

# Liu et al. 2019 for the search and the last training; 12 epochs of the same recipe for one trial.
_STANDARD = Preset(
    trial=dataclasses.replace(
        RECIPES["standard"], epochs=12, auxiliary=0.0, drop_path=0.0, cutout=0, schedule="step"
    ),
    search=Bilevel(),
    shared=Recipe(epochs=200, batch=256, lr=0.1, weight_decay=5e-4, clip=5.0),
    final=RECIPES["standard"],
    trials=100,
    top_k=4,
    top_k_epochs=50,
    seeds=3,
    full_size=True,
)

# Dong & Yang 2020, table 1 and §4: one recipe for 12 and 200 epochs, their settings of weight sharing.
_SHARING = Recipe(epochs=50, batch=64, lr=0.025, lr_min=0.001, weight_decay=5e-4, clip=5.0, schedule="epoch")
_NASBENCH201 = Preset(
    trial=RECIPES["nasbench201-12"],
    search=Bilevel(weights=_SHARING),
    shared=dataclasses.replace(_SHARING, epochs=250),
    final=RECIPES["nasbench201"],
    trials=100,
    top_k=1,
    top_k_epochs=12,
    seeds=3,
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
