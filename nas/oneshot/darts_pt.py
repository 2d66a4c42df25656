"""Selection by perturbation: an operation is worth what its removal costs the supernet (DARTS-PT).

The size of an alpha says little about how much the supernet relies on an operation
(Wang et al., ICLR 2021, "Rethinking architecture selection in differentiable NAS", algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.data.task import Split, Task, first_of
from nas.errors import ConfigError
from nas.oneshot.discretize import barred as barred_identities
from nas.oneshot.supernet import Supernet, in_training, preserving
from nas.seeding import rng
from nas.space.mixed_op import Mixture, Share, Weighed
from nas.training.recipe import Recipe

BATCH = 256
"""Images that batch-norm takes its statistics of."""


@dataclass(frozen=True)
class ByPerturbation:
    """Settings of the selection.

    tune: epochs of training between the selections, in all, as a share of the search's (published: 5 epochs
      for each decision of a cell, those of both cells in step, after a search of 50 to 100; the default costs
      less).
    images: at most so many validation images are looked at for each removal (published: all of them, at
      more cost).

    The tuning begins at a tenth of the search's first learning rate, and a cosine takes it down to the last
    one.

    Deviation: the connections are chosen at once, by what the removal of each costs, and not one node after
    the other with tuning between them, the worst leaving first: which connections exclude each other is known
    to the space's `project` alone.
    """

    tune: float = 0.5
    images: int = 2048

    def __post_init__(self) -> None:
        if not (0 <= self.tune < math.inf and self.images >= 2):
            raise ConfigError(
                f"selection: got tune {self.tune} and {self.images} images; wanted a finite number of at "
                "least 0, and at least 2"
            )

    def recipe(self, weights: Recipe, epochs: int) -> Recipe:
        """Of the weights while decisions are fixed in so many epochs. weights: that of the search."""
        lr = weights.lr / 10
        lr_min = min(lr, weights.lr_min)
        return replace(weights, epochs=epochs, lr=lr, lr_min=lr_min, warmup_epochs=0.0, restarts=())


def turns(supernet: Supernet, seed: int, epochs: int) -> list[list[int]]:
    """[epochs + 1] the decisions, by position, that are fixed after each epoch of tuning; in random order."""
    order = rng(seed, "selection").permutation(len(supernet.space.decisions))
    found: list[list[int]] = [[] for _ in range(epochs + 1)]
    for i, decision in enumerate(order.tolist()):
        found[i * epochs // len(order)].append(decision)
    return found


def select(
    supernet: Supernet, task: Task, settings: ByPerturbation, decision: int, *, cap: int | None = None
) -> int:
    """Fixes one decision to the option whose removal hurts the validation score most; returns it.

    cap: at most so many identities in a cell, unless there are no other options; any number when None.
    """
    alive = supernet.alive
    if len(alive[decision]) > 1:
        barred = () if cap is None else barred_identities(supernet.space, alive, decision, cap)
        options = [option for option in alive[decision] if option not in barred] or alive[decision]
        left = [score_without(supernet, task, settings, decision, option) for option in options]
        best = options[int(np.argmin(left))]
        supernet.keep([(best,) if i == decision else options for i, options in enumerate(alive)])
    return supernet.alive[decision][0]


def score_without(
    supernet: Supernet, task: Task, settings: ByPerturbation, decision: int, option: int | None = None
) -> float:
    """Validation score, larger is better, when one option, or all of a decision, gets no weight."""
    mixture = _changed(supernet, decision, partial(_without, option=option))
    return task.problem.better(validated(supernet, mixture, task, first_of(task.val, settings.images))[1])


def worth(supernet: Supernet, task: Task, decision: int, options: Sequence[int]) -> list[float]:
    """What options of a decision are worth to the supernet, larger is better.

    How much the validation loss rises without one; or, where weights were trained with one option at a time,
    how low it is with this one alone.
    """
    alone = supernet.relaxation.samples_one_path
    change, sign = (_only, -1.0) if alone else (_without, 1.0)
    mixtures = (_changed(supernet, decision, partial(change, option=option)) for option in options)
    return [sign * validated(supernet, mixture, task, task.val)[0] for mixture in mixtures]


def connections(
    supernet: Supernet,
    task: Task,
    settings: ByPerturbation,
    strengths: Sequence[NDArray[np.float64]] = (),
) -> list[NDArray[np.float64]]:
    """What `project` decides by once every decision is fixed to an option.

    Where the space forbids combinations, connections whose removal hurts more score higher (the paper's
    selection of the topology).

    strengths: of the options, when the alphas chose. They decide where the space does not take the option
      that was selected, such as `none` on a connection that a node of DARTS cannot do without.
    """
    space = supernet.space
    hot = space.one_hot(tuple(options[0] for options in supernet.alive))
    if space.is_free:
        return hot
    left = np.array([score_without(supernet, task, settings, i) for i in range(len(hot))])
    rank = (-left).argsort(kind="stable").argsort()
    scored = [row * (1 + rank[i] / len(hot)) for i, row in enumerate(hot)]
    return [row + 1e-6 * own for row, own in zip(scored, strengths, strict=True)] if strengths else scored


def validated(supernet: Supernet, mixture: Mixture, task: Task, split: Split) -> tuple[float, float]:
    """Mean loss and score of a mixture, batch-norm taking the statistics of each batch (as the code does)."""
    loss = score = 0.0
    seen = 0
    with preserving(supernet.network.buffers()), in_training(supernet), torch.no_grad():
        for x, y in zip(torch.split(split.x, BATCH), torch.split(split.y, BATCH), strict=True):
            if len(x) > 1 or not seen:
                logits = supernet.mix(task.normalise(x), mixture)
                loss += len(x) * float(task.problem.loss(logits, y))
                score += float(task.problem.score(logits, y).sum())
                seen += len(x)
    return loss / seen, score / seen


def _changed(supernet: Supernet, decision: int, change: Callable[[Share], Share]) -> Mixture:
    """The mixture of the alphas with another share of a decision; those of others stay (as in the code)."""
    name = supernet.space.decisions[decision].name
    with torch.no_grad():
        mixture = supernet.expected_mixture()
    return {**mixture, name: change(mixture[name])}


def _without(share: Share, option: int | None) -> Share:
    """The share with one option removed, or with all and the channels that bypass them."""
    row = _row(share)
    if option is None:
        return Weighed(row, row.new_zeros(()))
    row = row.clone()
    row[option] = 0.0
    return Weighed(row, share.weight) if isinstance(share, Weighed) else row


def _only(share: Share, option: int) -> Share:
    """The share with nothing but one option."""
    row = torch.zeros_like(_row(share))
    row[option] = 1.0
    return Weighed(row, share.weight) if isinstance(share, Weighed) else row


def _row(share: Share) -> Tensor:
    return cast(Tensor, share.share if isinstance(share, Weighed) else share)
