"""Tasks with errors at known places, to measure on one's own data what an audit would find."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nas.data.task import Split, Task
from nas.seeding import rng

Pairs = frozenset[tuple[int, int]]
BRIGHTER, NOISE = 0.15, 0.02


@dataclass(frozen=True, eq=False)
class Planted:
    """A task and what is wrong with it.

    Images are numbered through all splits, and `Split.origin` says these numbers.

    wrong: images with a wrong label. exact, near: pairs of copies in the training split. leak: pairs of a
      training and a test image that are the same.
    """

    task: Task
    wrong: frozenset[int]
    exact: Pairs
    near: Pairs
    leak: Pairs


def plant(task: Task, *, mislabels: float, copies: int, leaks: int, seed: int) -> Planted:
    """Plants copies of both kinds and leaks in the training split, then wrong labels everywhere.

    mislabels: share of all images, in [0, 1), whose label becomes one of the others, each as likely.
    copies: exact ones, and as many near ones, see `near_copy`. leaks: test images in the training split.
    """
    draw = rng(seed, "plant")
    train, val, test = task.train, task.val, task.test
    chosen = draw.permutation(len(train))[: 2 * copies]
    leaked = draw.permutation(len(test))[:leaks]
    nears = [near_copy(train.x[i], draw) for i in chosen[copies:]]
    x = torch.cat([train.x, train.x[chosen[:copies]], *(image[None] for image in nears), test.x[leaked]])
    y = torch.cat([train.y, train.y[chosen], test.y[leaked], val.y, test.y])
    wrong = draw.permutation(len(y))[: round(mislabels * len(y))]
    y[wrong] = (
        y[wrong] + torch.from_numpy(draw.integers(1, task.num_classes, len(wrong)))
    ) % task.num_classes
    sizes = [len(x), len(val), len(test)]
    labels, numbers = torch.split(y, sizes), torch.split(torch.arange(len(y)), sizes)
    splits = [Split(*part) for part in zip((x, val.x, test.x), labels, numbers, strict=True)]
    new = len(train) + np.arange(2 * copies + leaks)
    pairs = list(zip(np.append(chosen, sizes[0] + sizes[1] + leaked).tolist(), new.tolist(), strict=True))
    return Planted(
        replace(task, train=splits[0], val=splits[1], test=splits[2], files=()),
        frozenset(wrong.tolist()),
        frozenset(pairs[:copies]),
        frozenset(pairs[copies : 2 * copies]),
        frozenset((copy, image) for image, copy in pairs[2 * copies :]),
    )


def near_copy(image: Tensor, draw: np.random.Generator) -> Tensor:
    """The image one pixel aside, up to 15 % brighter or darker, with noise of 2 % of the range of values.

    image: [C, H, W] uint8, or float of any range.
    """
    axis, step = int(draw.integers(1, 3)), int(draw.choice([-1, 1]))
    places = (torch.arange(image.shape[axis]) + step).clamp(0, image.shape[axis] - 1)
    moved = image.float().index_select(axis, places) * draw.uniform(1 - BRIGHTER, 1 + BRIGHTER)
    whole = image.dtype == torch.uint8
    scale = NOISE * (255.0 if whole else float(image.max() - image.min()))
    noisy = moved + torch.from_numpy(draw.normal(0, scale, image.shape)).float()
    return noisy.clamp(0, 255).round().to(image.dtype) if whole else noisy.to(image.dtype)
