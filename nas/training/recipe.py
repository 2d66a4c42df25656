"""Training recipes: every setting of one training run as a frozen value, and the published ones by name."""

from __future__ import annotations

import dataclasses
import math
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from nas.errors import ConfigError, shown, unknown
from nas.types import MOST

Precision = Literal["auto", "float32", "bfloat16"]
Execution = Literal["auto", "plain", "batched"]
Schedule = Literal["step", "epoch"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum, linear warm-up, then a cosine to `lr_min`.

    epochs: passes over the training images; the schedule is compressed to fit them.
    batch: images per step; a smaller split is taken whole.
    lr, lr_min: learning rate at the cosine's start and end.
    weight_decay: L2 penalty on all parameters, batch norm and biases included.
    momentum, nesterov: of the SGD optimizer.
    warmup_epochs: epochs of linear growth up to `lr`, taken out of `epochs`; may be a fraction. A restart has
      none: warm-up protects fresh weights and statistics, and a restart finds trained ones.
    restarts: epochs, counted from the start, after which the cosine, come down to `lr_min`, begins again at
      `lr`; what lies between two of them is a segment.
    schedule: whether the learning rate moves every step or every epoch.
    label_smoothing: probability taken from the true class and spread over all.
    clip: largest L2 norm of the whole gradient; 0 = off.
    auxiliary: weight of the auxiliary head's loss; 0 = off, and its output is not used.
    drop_path: probability that grows linearly from 0 in the first epoch to this after the last.
    cutout: side in pixels of the erased square; 0 = off.
    mixup: α of the Beta(α, α) mixing weight; 0 = off.
    ema: decay of the moving average of the weights; 0 = off.
    crop: whether to crop at random after padding by the task's `pad`.
    flip: whether to mirror at random, where the task's images allow it.
    precision: arithmetic of the forward passes, normally bfloat16 on CUDA and float32 elsewhere (`auto`);
      weights and their updates are float32 always.
    execution: how cells are run: one operation after the other (`plain`), operations of a kind together
      (`batched`), or the faster one on the device (`auto`); with equal outcomes but for rounding.
    graph: on CUDA, whether steps that can be are replayed as one graph, see `nas.training.cuda_graph`.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    lr_min: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    warmup_epochs: float = 0.0
    restarts: tuple[int, ...] = ()
    schedule: Schedule = "step"
    label_smoothing: float = 0.0
    clip: float = 0.0
    auxiliary: float = 0.0
    drop_path: float = 0.0
    cutout: int = 0
    mixup: float = 0.0
    ema: float = 0.0
    crop: bool = True
    flip: bool = True
    precision: Precision = "auto"
    execution: Execution = "auto"
    graph: bool = True

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            holds = type(value) is int and least <= value <= MOST
            self._require(name, f"an integer of at least {least} and at most {MOST:,}", holds=holds)
        for name, below in _NUMBERS.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            # An integer beyond every float is no finite number either.
            holds = number and 0 <= value <= sys.float_info.max and value < below
            under = "" if below == math.inf else f" and below {below}"
            self._require(name, f"a finite number of at least 0{under}", holds=holds)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            holds = any(value is choice or (isinstance(value, str) and value == choice) for choice in choices)
            self._require(name, " or ".join(map(repr, choices)), holds=holds)
        restarts: object = self.restarts
        holds = isinstance(restarts, tuple) and all(type(epoch) is int for epoch in restarts)
        holds = holds and all(a < b for a, b in pairwise((0, *self.restarts)))
        self._require("restarts", "a tuple of ascending epochs from 1 on", holds=holds)
        self._require("lr", "a number above 0", holds=self.lr > 0)
        self._require("lr_min", f"at most lr, {self.lr}", holds=self.lr_min <= self.lr)
        self._require(
            "restarts", f"below epochs, {self.epochs}", holds=all(r < self.epochs for r in self.restarts)
        )
        end = f"the first restart, {self.restarts[0]}" if self.restarts else f"epochs, {self.epochs}"
        self._require("warmup_epochs", f"below {end}", holds=self.warmup_epochs < self.ends[0])
        self._require("nesterov", "False where momentum is 0", holds=not self.nesterov or self.momentum > 0)

    @property
    def ends(self) -> tuple[int, ...]:
        """[segments] epochs after which a segment ends; the last is `epochs`."""
        return (*self.restarts, self.epochs)

    def _require(self, field: str, wanted: str, *, holds: bool) -> None:
        if not holds:
            raise ConfigError(f"recipe: {field} is {shown(getattr(self, field))}, but must be {wanted}")


def learning_rate(recipe: Recipe, step: int, *, steps_per_epoch: int) -> float:
    """The learning rate of one step, counted from 0 over the whole training.

    With t in epochs, in a segment from epoch s to e whose first w epochs are warm-up:
    `lr_min + (lr - lr_min) * (1 + cos(π (t - s - w) / (e - s - w))) / 2` (Loshchilov & Hutter 2017, eq. 5).
    """
    unit = 1.0 if recipe.schedule == "epoch" else 1.0 / steps_per_epoch
    epoch = step // steps_per_epoch
    now = epoch if recipe.schedule == "epoch" else step / steps_per_epoch
    if now < recipe.warmup_epochs:
        return recipe.lr * min(1.0, (now + unit) / recipe.warmup_epochs)
    segment = bisect_right(recipe.restarts, epoch)
    begin = (recipe.warmup_epochs, *recipe.restarts)[segment]
    progress = (now - begin) / (recipe.ends[segment] - begin)
    return recipe.lr_min + (recipe.lr - recipe.lr_min) * (1 + math.cos(math.pi * progress)) / 2


def compressed(recipe: Recipe, epochs: int) -> Recipe:
    """The same schedule, warm-up and restarts included, in another number of epochs.

    Restarts move to the next whole epoch; those that fall together become one.
    """
    warmup = recipe.warmup_epochs * epochs / recipe.epochs
    moved = {-(-end * epochs // recipe.epochs) for end in recipe.restarts} - {epochs}
    return dataclasses.replace(recipe, epochs=epochs, warmup_epochs=warmup, restarts=tuple(sorted(moved)))


def segmented(recipe: Recipe, epochs: Sequence[int]) -> Recipe:
    """The schedule repeated in segments of so many `epochs`, the warm-up in the first one only."""
    *restarts, total = accumulate(epochs)
    first = compressed(dataclasses.replace(recipe, restarts=()), epochs[0])
    return dataclasses.replace(first, epochs=total, restarts=tuple(restarts))


def preset(name: str) -> Recipe:
    """The recipe of that name in `PRESETS`; vary it with `dataclasses.replace`."""
    if name not in PRESETS:
        raise ConfigError(unknown("recipe", name, PRESETS))
    return PRESETS[name]


_WHOLE = {"epochs": 1, "batch": 2, "cutout": 0}
"""Whole numbers, and the least of each."""
_NUMBERS = {
    **dict.fromkeys(
        ("lr", "weight_decay", "lr_min", "warmup_epochs", "clip", "auxiliary", "mixup"), math.inf
    ),
    **dict.fromkeys(("momentum", "label_smoothing", "drop_path", "ema"), 1),
}
"""Numbers of at least 0, and what each is below."""
_CHOICES: Mapping[str, tuple[str | bool, ...]] = {
    **dict.fromkeys(("nesterov", "crop", "flip", "graph"), (True, False)),
    "schedule": get_args(Schedule),
    "precision": get_args(Precision),
    "execution": get_args(Execution),
}

_QUICK = Recipe(
    epochs=15,
    batch=64,
    lr=0.05,
    weight_decay=5e-4,
    warmup_epochs=1.0,
    label_smoothing=0.05,
    clip=5.0,
)

# Liu et al. 2019 (DARTS), section 3.2 and the released code, whose SGD has plain momentum.
_STANDARD = Recipe(
    epochs=600,
    batch=96,
    lr=0.025,
    weight_decay=3e-4,
    nesterov=False,
    schedule="epoch",
    clip=5.0,
    auxiliary=0.4,
    drop_path=0.2,
    cutout=16,
)

# Dong & Yang 2020 (NAS-Bench-201), table 1, and the released code, whose cosine looks at the epoch alone.
_NASBENCH201 = Recipe(epochs=200, batch=256, lr=0.1, weight_decay=5e-4, schedule="epoch")

# Liu et al. 2019, §3.1.1 and the released code: 50 epochs, batch 64, plain momentum, cosine per epoch.
DARTS_SEARCH = Recipe(
    epochs=50,
    batch=64,
    lr=0.025,
    lr_min=0.001,
    weight_decay=3e-4,
    nesterov=False,
    schedule="epoch",
    clip=5.0,
)

PRESETS: Mapping[str, Recipe] = MappingProxyType(
    {
        "quick": _QUICK,
        "standard": _STANDARD,
        "nasbench201": _NASBENCH201,
        "nasbench201-12": dataclasses.replace(_NASBENCH201, epochs=12),
    }
)
"""`quick`: minutes on a CPU. `standard`: the 600 epochs of DARTS. `nasbench201`: 200 epochs, or 12."""


def precision(device: torch.device, wanted: Precision = "auto") -> torch.autocast:
    """The arithmetic of a forward pass: as wanted, or bfloat16 where safe on CUDA and float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half(device, wanted))


def is_half(device: torch.device, wanted: Precision = "auto") -> bool:
    """Whether that arithmetic is bfloat16."""
    return device.type == "cuda" if wanted == "auto" else wanted == "bfloat16"


def to_layout(x: Tensor) -> Tensor:
    """A batch `[B, C, H, W]` in the memory layout that is computed fastest in, on CPUs too: channels last."""
    return x.contiguous(memory_format=torch.channels_last)
