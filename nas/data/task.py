"""Task: the images a search is for, on the device, with splits made once and fingerprinted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.data import datasets
from nas.data.arrays import (
    Array,
    Source,
    as_float,
    as_numpy,
    images_as_numpy,
    mean_and_std,
    shrunk,
    usual_padding,
)
from nas.data.imagefolder import MapDataset, collect
from nas.data.splits import Samples, divide
from nas.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their classes.

    x: [N, C, H, W] uint8, or float32 when the source was float.
    y: [N] int64, in 0..num_classes-1.
    origin: [N] int64 positions in the source, its training part first, then its test part; None once images
      were cut or left out for speed.
    """

    x: Tensor
    y: Tensor
    origin: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        """A line for people."""
        return f"<Split of {len(self)} images {tuple(self.x.shape[1:])} of {self.x.dtype}>"

    def to(self, device: torch.device | str) -> Split:
        """The same images on `device`."""
        return Split(self.x.to(device), self.y.to(device), self.origin)


@dataclass(frozen=True, eq=False)
class Task:
    """What networks are searched for: three disjoint splits of labelled images of one shape.

    name: as given to `load_task`.
    classes: class names in the order of their numbers.
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

    @property
    def num_classes(self) -> int:
        """C, at least 2."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.train.x.shape[1:]
        return channels, height, width

    def __repr__(self) -> str:
        """A line for people; the fields hold the rest."""
        sizes = f"{len(self.train)} train, {len(self.val)} val, {len(self.test)} test"
        return f"<Task {self.name!r}: {self.num_classes} classes, images {self.image_shape}, {sizes}>"

    def normalise(self, x: Tensor) -> Tensor:
        """Raw pixels [B, C, H, W] as float32 of about zero mean and unit variance.

        uint8 is scaled to [0, 1] first, floats are taken as they are.
        """
        return (as_float(x) - self.mean[:, None, None]).div_(self.std[:, None, None])

    def to(self, device: torch.device | str) -> Task:
        """The same task with every tensor on `device`."""
        return replace(
            self,
            train=self.train.to(device),
            val=self.val.to(device),
            test=self.test.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

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
        train, val, test = (
            Split(shrunk(split.x, size), split.y) for split in (self.train, self.val, self.test)
        )
        return replace(
            self,
            train=train,
            val=val,
            test=test,
            pad=min(self.pad, usual_padding(min(size))),
            fingerprint=f"{self.fingerprint}:{size[0]}x{size[1]}",
        )

    def train_and_val(self) -> Split:
        """Both parts that a search may see as one, for the final retrain."""
        return Split(torch.cat([self.train.x, self.val.x]), torch.cat([self.train.y, self.val.y]))


def load_task(
    name: str,
    *,
    seed: int = 0,
    val_fraction: float | None = None,
    test_fraction: float = 0.2,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    lenient: bool = False,
) -> Task:
    """Loads `digits`, `fashion_mnist`, `cifar10`, `cifar100`, `npz:PATH` or `folder:PATH`.

    `folder:PATH@64` or `@64x48` (width x height) stretches the images of a folder to one size.

    val_fraction: share of the training images held out for the search; 0.5 unless given, the even split
        between weights and alphas of DARTS (Liu et al. 2019, section 3).
    test_fraction: share held out for the final test when the source has no test part of its own.
    limit: keeps so many training images, in the class proportions, before the validation split.
    lenient: leave out any number of images of a folder that cannot be used, and name all in `Task.skipped`.
    """
    return _task(
        datasets.read(name, lenient=lenient),
        name=name,
        seed=seed,
        val_fraction=0.5 if val_fraction is None else val_fraction,
        test_fraction=test_fraction,
        device=device,
        limit=limit,
    )


def task_from_arrays(
    x_train: Array | Tensor,
    y_train: Array | Tensor | Sequence[int | str],
    x_test: Array | Tensor | None = None,
    y_test: Array | Tensor | Sequence[int | str] | None = None,
    *,
    name: str = "arrays",
    classes: Sequence[str] | None = None,
    flip: bool = False,
    seed: int = 0,
    val_fraction: float = 0.5,
    test_fraction: float = 0.2,
    device: torch.device | str = "cpu",
) -> Task:
    """Makes a task of arrays in memory; the fractions mean what they mean in `load_task`.

    x: [N, H, W] or numpy [N, H, W, C] or torch [N, C, H, W]; uint8 or float.
    y: [N] class numbers 0..C-1, or class names.
    """
    source = Source(
        images_as_numpy(x_train, who=f"{name}: x_train"),
        as_numpy(y_train, who=f"{name}: y_train"),
        None if x_test is None else images_as_numpy(x_test, who=f"{name}: x_test"),
        None if y_test is None else as_numpy(y_test, who=f"{name}: y_test"),
        classes=None if classes is None else tuple(classes),
        flip=flip,
    )
    return _task(
        source, name=name, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, device=device
    )


def task_from_datasets(
    train: MapDataset,
    test: MapDataset | None = None,
    *,
    name: str = "datasets",
    classes: Sequence[str] | None = None,
    flip: bool = False,
    seed: int = 0,
    val_fraction: float = 0.5,
    test_fraction: float = 0.2,
    device: torch.device | str = "cpu",
) -> Task:
    """Makes a task of map-style data sets, such as torchvision's without random transforms.

    Images are read once, in order: Pillow images, numpy [H, W] or [H, W, C], or tensors [H, W] or [C, H, W].
    """
    x_train, y_train = collect(train, who=f"{name}: train")
    x_test, y_test = (None, None) if test is None else collect(test, who=f"{name}: test")
    source = Source(
        x_train, y_train, x_test, y_test, classes=None if classes is None else tuple(classes), flip=flip
    )
    return _task(
        source, name=name, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, device=device
    )


def _task(
    source: Source,
    *,
    name: str,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    device: torch.device | str,
    limit: int | None = None,
) -> Task:
    parts = divide(
        source, name=name, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, limit=limit
    )
    train = _split(parts.train)
    mean, std = mean_and_std(train.x)
    task = Task(
        name=name,
        classes=parts.classes,
        train=train,
        val=_split(parts.val),
        test=_split(parts.test),
        mean=mean,
        std=std,
        fingerprint=parts.fingerprint,
        flip=source.flip,
        pad=usual_padding(min(train.x.shape[2:])),
        skipped=source.skipped,
        notes=parts.notes,
        files=source.files,
    )
    return task.to(device)


def _split(samples: Samples) -> Split:
    return Split(torch.from_numpy(samples.x), torch.from_numpy(samples.y), torch.from_numpy(samples.origin))


def first_of(split: Split, keep: int) -> Split:
    """The same share of every class, each at least once while there is room; `keep` in all, in their order.

    The i-th of n images of a class comes after i / n of all others. The order of a split alone would not do:
    a stratified one begins with the classes whose share of the other part was full first.
    """
    if keep >= len(split):
        return Split(split.x, split.y)
    y = split.y.cpu().numpy()
    by_class, counts = np.argsort(y, kind="stable"), np.bincount(y)
    within = np.empty(len(y))
    within[by_class] = np.concatenate([np.arange(count) / max(1, count) for count in counts])
    chosen = np.sort(np.argsort(within, kind="stable")[:keep])
    index = torch.from_numpy(chosen).to(split.y.device)
    return Split(split.x[index], split.y[index])
