"""The record of a differentiable search: its epochs, and what it ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nas.oneshot.diagnostics import Health
from nas.oneshot.early_stopping import Growth
from nas.oneshot.supernet import Supernet
from nas.types import Genotype

Strengths = tuple[NDArray[np.float64], ...]
"""`[O]` for each decision, how much each option is preferred, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Epoch:
    """The search after one more epoch.

    epoch: counted from 1 to `epochs`; a search that goes back counts the same ones again.
    genotype: what the alphas prefer now.
    strengths: how much each option is preferred now.
    train_loss: mean of the weights' loss over the epoch.
    val_acc: accuracy of the whole mixture on the validation split, in [0, 1]; where one option runs at a
      time, that of the preferred architecture.
    seconds: time spent on training, looking and selecting.
    health: see there.
    growth: of the eigenvalue, as the guards see it, or would where there are none.
    events: what happened at its end, in words.
    back: the epoch that the search went back to at its end; None where it went on.
    """

    epoch: int
    epochs: int
    genotype: Genotype
    strengths: Strengths
    train_loss: float
    val_acc: float
    seconds: float
    health: Health = field(default_factory=Health)
    growth: Growth = field(default_factory=Growth)
    events: tuple[str, ...] = ()
    back: int | None = None

    def packed(self) -> dict[str, Any]:
        """As plain values and tensors."""
        return {
            **vars(self),
            "genotype": list(self.genotype),
            "strengths": [torch.from_numpy(row) for row in self.strengths],
            "health": dataclasses.asdict(self.health),
            "growth": dataclasses.asdict(self.growth),
            "events": list(self.events),
        }

    @classmethod
    def unpacked(cls, record: Mapping[str, Any]) -> Epoch:
        """What `packed` took apart."""
        changed = {
            "genotype": tuple(record["genotype"]),
            "strengths": tuple(row.numpy() for row in record["strengths"]),
            "health": Health(**record["health"]),
            "growth": Growth(**record["growth"]),
            "events": tuple(record["events"]),
        }
        return cls(**{**record, **changed})


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a search ends with.

    selected: architectures in the order in which they are preferred: by the method's selection, by the alphas
      where that is another one, and those preferred after earlier epochs, the latest first, without those
      that were gone back on; each once.
    strengths: how much each option was preferred when the alphas chose.
    supernet: as it is at the end.
    """

    epochs: Sequence[Epoch]
    selected: Sequence[Genotype]
    strengths: Strengths
    supernet: Supernet


def lasting(epochs: Sequence[Epoch]) -> list[Epoch]:
    """The epochs without those that the search went back on."""
    found: list[Epoch] = []
    for epoch in epochs:
        found.append(epoch)
        if epoch.back is not None:
            found = [earlier for earlier in found if earlier.epoch <= epoch.back]
    return found
