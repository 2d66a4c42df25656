"""Task: the images a search is for, and its problem, on the device, split once and fingerprinted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.data.arrays import Labels, shrunk, usual_padding
from nas.data.problem import CLASSIFICATION, Problem
from nas.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their targets.

    x: [N, C, H, W] uint8, or float32 when the source was float.
    y: [N] targets, such as class numbers 0..C-1 as int64.
    origin: [N] int64 positions in the source, its training part first, then its test part, on the CPU; None
      for images that are of no source.
    """

    x: Tensor
    y: Tensor
    origin: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        """A line for people."""
        return f"<Split of {len(self)} images {tuple(self.x.shape[1:])} of {self.x.dtype}>"

    def at(self, indices: Labels) -> Split:
        """A copy of the images at `indices`, in their order, on their device."""
        index = torch.from_numpy(indices)
        own = index.to(self.y.device)
        return Split(self.x[own], self.y[own], None if self.origin is None else self.origin[index])

    def to(self, device: torch.device | str) -> Split:
        """The same images on `device`."""
        return Split(self.x.to(device), self.y.to(device), self.origin)


@dataclass(frozen=True, eq=False)
class Task:
    """What networks are searched for: three disjoint splits of images of one shape, and a problem.

    name: as given to `load_task`.
    classes: class names in the order of their numbers; none where targets are no classes.
    train, val: what a search sees; stratified and shuffled.
    test: for the final network only.
    mean, std: [C] float32 of the train split's pixels, uint8 scaled to [0, 1]; a constant channel has std 1.
    fingerprint: SHA-256 in hex of the arrays, the class names, the split and its seed.
    flip: whether images are mirrored in training; unless asked, those of CIFAR alone.
    pad: usual padding of the random crop, in pixels.
    skipped: source files that could not be read, each with the reason.
    notes: what the user should know about the data, one finding each.
    files: the file of each image by its `origin`, relative to the task's folder; empty where images do not
      lie in files of their own.
    problem: what a network learns of the targets, and how well means what.
    excluded: what was left out by a list of suspects, see `nas.data.exclusions.without`; empty if nothing.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    mean: Tensor
    std: Tensor
    fingerprint: str
    flip: bool
    pad: int
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    excluded: Mapping[str, Any] = field(default_factory=dict)
    problem: Problem = CLASSIFICATION

    @property
    def num_classes(self) -> int:
        """C, at least 2; 0 where targets are no classes."""
        return len(self.classes)

    @property
    def outputs(self) -> int:
        """Numbers that a network gives for an image."""
        return self.problem.outputs or len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by their names: train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def __repr__(self) -> str:
        """A line for people; the fields hold the rest."""
        sizes = f"{len(self.train)} train, {len(self.val)} val, {len(self.test)} test"
        learned = f"{len(self.classes)} classes" if self.classes else self.problem.name
        return f"<Task {self.name!r}: {learned}, images {self.image_shape}, {sizes}>"

    def normalise(self, x: Tensor) -> Tensor:
        """Raw pixels [B, C, H, W] as float32 of about zero mean and unit variance.

        uint8 is scaled to [0, 1] first, floats are taken as they are.
        """
        return (as_float(x) - self.mean[:, None, None]).div_(self.std[:, None, None])

    def to(self, device: torch.device | str) -> Task:
        """The same task with every tensor on `device`."""
        train, val, test = (split.to(device) for split in self.splits.values())
        mean, std = self.mean.to(device), self.std.to(device)
        return replace(self, train=train, val=val, test=test, mean=mean, std=std)

    def reduced(self, images: int) -> Task:
        """The same task with at most `images` for training and validation together, in their proportion.

        The classes keep their proportions in each, and none is left out while there is room. The test split
        stays whole.
        """
        share = images / (len(self.train) + len(self.val))
        if share >= 1:
            return self
        if images < 2 * self.num_classes:
            raise ConfigError(
                f"task {self.name!r}: {images} images are too few for {self.num_classes} classes"
            )
        train, val = (first_of(split, max(2, round(share * len(split)))) for split in (self.train, self.val))
        return replace(self, train=train, val=val, fingerprint=f"{self.fingerprint}:{images}")

    def subset(self, share: float) -> Task:
        """The same task with a `share` of the training images, in (0, 1], at least two of them.

        The classes keep their proportions, none is left out while there is room for all, and a larger share
        holds a smaller one. Validation and test stay whole. So do the statistics: a network that goes on with
        more images must see them normalised alike.
        """
        if not 0 < share <= 1:
            raise ConfigError(
                f"task {self.name!r}: the share of training images is {share}, "
                "but must be above 0 and at most 1"
            )
        keep = max(2, round(share * len(self.train)))
        if keep >= len(self.train):
            return self
        train = first_of(self.train, keep)
        return replace(self, train=train, fingerprint=f"{self.fingerprint}:train {keep}")

    def resized(self, side: int) -> Task:
        """The same task with all images shrunk to `side` pixels of height, the width in proportion.

        Pixels are means over the areas they cover, rounded where they are uint8. The statistics are kept for
        the reason that `subset` gives: averaging leaves the mean and lowers the deviation a little.
        """
        height, width = self.image_shape[1:]
        if not 1 <= side <= height:
            raise ConfigError(
                f"task {self.name!r}: side is {side}, but must be at least 1 and at most the images' height, "
                f"{height}"
            )
        if side == height:
            return self
        size = side, max(1, round(width * side / height))
        train, val, test = (replace(split, x=shrunk(split.x, size)) for split in self.splits.values())
        pad, fingerprint = min(self.pad, usual_padding(min(size))), f"{self.fingerprint}:{size[0]}x{size[1]}"
        return replace(self, train=train, val=val, test=test, pad=pad, fingerprint=fingerprint)

    def train_and_val(self) -> Split:
        """Both parts that a search may see as one, for the final retrain."""
        return Split(torch.cat([self.train.x, self.val.x]), torch.cat([self.train.y, self.val.y]))


def as_float(x: Tensor) -> Tensor:
    """float32, uint8 scaled to [0, 1]."""
    return x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x.float()


def first_of(split: Split, keep: int) -> Split:
    """The same share of every class, each at least once while there is room; `keep` in all, in their order.

    Where targets are no classes, evenly spaced ones.

    The i-th of n images of a class comes after i / n of all others. The order of a split alone would not do:
    a stratified one begins with the classes whose share of the other part was full first.
    """
    if keep >= len(split):
        return split
    y = split.y.cpu().numpy()
    if y.dtype.kind == "f":
        return split.at(np.linspace(0, len(split), keep, endpoint=False).astype(np.int64))
    by_class, counts = np.argsort(y, kind="stable"), np.bincount(y)
    within = np.empty(len(y))
    within[by_class] = np.concatenate([np.arange(count) / max(1, count) for count in counts])
    return split.at(np.sort(np.argsort(within, kind="stable")[:keep]))
