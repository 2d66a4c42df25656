"""Task: the images a search is for, on the device, checked, split once and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.data import datasets
from nas.data.arrays import (
    Array,
    Labels,
    Source,
    as_numpy,
    digest,
    encode_labels,
    image_tensor,
    images_as_numpy,
    shrunk,
    usual_padding,
)
from nas.errors import ConfigError, DataError
from nas.seeding import rng

_IMBALANCE = 10
_FLAT_STD = 1e-6  # below it a channel is constant, and dividing by it would only enlarge rounding errors


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

    def at(self, indices: Labels) -> Split:
        """A copy of the images at `indices`, in their order, on the CPU."""
        index = torch.from_numpy(indices)
        return Split(self.x[index], self.y[index], None if self.origin is None else self.origin[index])

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

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by their names: train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

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
    train: datasets.MapDataset,
    test: datasets.MapDataset | None = None,
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
    x_train, y_train = datasets.collect(train, who=f"{name}: train")
    x_test, y_test = (None, None) if test is None else datasets.collect(test, who=f"{name}: test")
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
    """Checks a source and divides it; equal arguments give equal parts."""
    _check_fraction("val_fraction", val_fraction)
    _check_fraction("test_fraction", test_fraction)
    pool, classes = _checked(
        source.x_train, source.y_train, f"{name}: x_train", f"{name}: y_train", source.classes
    )
    test = _official_test(source, pool, name=name, classes=classes)
    # Every class must reach every part that is still to be taken from the pool.
    _check_class_sizes(pool, classes, who=f"{name}: y_train", least=3 if test is None else 2)
    draw = rng(seed, "split")
    if test is None:
        taken, rest = stratified(pool.y.numpy(), round(test_fraction * len(pool)), draw, spare=2)
        test, pool = pool.at(taken), pool.at(rest)
    if limit is not None:
        pool = _limited(pool, limit, draw, classes=len(classes))
    taken, rest = stratified(pool.y.numpy(), round(val_fraction * len(pool)), draw)
    train, val = pool.at(rest), pool.at(taken)
    mean, std = mean_and_std(train.x)
    task = Task(
        name=name,
        classes=classes,
        train=train,
        val=val,
        test=test,
        mean=mean,
        std=std,
        fingerprint=_fingerprint((train, val, test), classes, seed),
        flip=source.flip,
        pad=usual_padding(min(train.x.shape[2:])),
        skipped=source.skipped,
        notes=(*source.notes, *_findings(train, val, test, classes)),
        files=source.files,
    )
    return task.to(device)


def _check_fraction(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(
            f"{what} is {value}, but must lie between 0 and 1, both excluded; 0.2 or 0.5 are usual"
        )


def _checked(
    x: Array, y: Array, x_name: str, y_name: str, classes: Sequence[str] | None
) -> tuple[Split, tuple[str, ...]]:
    images = torch.from_numpy(image_tensor(x, who=x_name))
    labels, names = encode_labels(y, who=y_name, classes=classes)
    if len(images) != len(labels):
        raise DataError(
            f"{x_name} has {len(images)} images, but {y_name} has {len(labels)} labels; give each image one"
        )
    return Split(images, torch.from_numpy(labels), torch.arange(len(labels))), names


def _official_test(source: Source, pool: Split, *, name: str, classes: Sequence[str]) -> Split | None:
    if source.x_test is None and source.y_test is None:
        return None
    if source.x_test is None or source.y_test is None:
        missing = "x_test" if source.x_test is None else "y_test"
        raise DataError(f"{name} has only half of its test part: {missing} is missing; give both or neither")
    test, _ = _checked(source.x_test, source.y_test, f"{name}: x_test", f"{name}: y_test", classes)
    if test.x.shape[1:] != pool.x.shape[1:] or test.x.dtype != pool.x.dtype:
        raise DataError(
            f"{name}: test images are {tuple(test.x.shape[1:])} (C, H, W) of {test.x.numpy().dtype}, but "
            f"training images are {tuple(pool.x.shape[1:])} of {pool.x.numpy().dtype}; bring both to one form"
        )
    return replace(test, origin=len(pool) + torch.arange(len(test)))


def _check_class_sizes(pool: Split, classes: Sequence[str], *, who: str, least: int) -> None:
    """Refuses labels of one class only, or a class of fewer than `least` images."""
    counts = np.bincount(pool.y.numpy(), minlength=len(classes))
    if np.count_nonzero(counts) < 2:
        raise DataError(
            f"{who}: all {len(pool)} labels are of one class ({classes[int(counts.argmax())]!r}), "
            "but a classifier needs at least two"
        )
    small = np.flatnonzero(counts < least)
    if len(small):
        listed = ", ".join(f"{classes[c]!r}: {counts[c]}" for c in small[:5])
        raise DataError(
            f"{who}: {len(small)} of {len(classes)} classes have fewer than {least} images ({listed}), "
            "too few to be in every split; add images or leave these classes out"
        )


def _limited(pool: Split, limit: int, draw: np.random.Generator, *, classes: int) -> Split:
    if limit < 2 * classes:
        raise ConfigError(f"limit is {limit}, but must be at least {2 * classes}, two images of each class")
    kept, _ = stratified(pool.y.numpy(), min(limit, len(pool)), draw, least=2, spare=0)
    return pool.at(kept)


def as_float(x: Tensor) -> Tensor:
    """float32, uint8 scaled to [0, 1]."""
    return x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x.float()


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] of images [N, C, H, W], one channel at a time to keep the float copy small."""
    moments = [torch.std_mean(as_float(channel), correction=0) for channel in x.unbind(1)]
    std, mean = (torch.stack(values) for values in zip(*moments, strict=True))
    return mean, torch.where(std > _FLAT_STD, std, 1.0)


def _fingerprint(parts: Sequence[Split], classes: Sequence[str], seed: int) -> str:
    """SHA-256 in hex of the parts in their order, the class names and the seed."""
    content = hashlib.sha256(repr((seed, tuple(classes))).encode())
    for x, y in ((part.x.numpy(), part.y.numpy()) for part in parts):
        content.update(repr((x.shape, str(x.dtype))).encode())
        content.update(x.data)
        content.update(y.data)
    return content.hexdigest()


def _findings(train: Split, val: Split, test: Split, classes: Sequence[str]) -> Iterator[str]:
    """What is suspicious, but may be meant: images in two parts or of two classes, very unequal classes."""
    trained, validated, tested = ([digest(image) for image in part.x.numpy()] for part in (train, val, test))
    known = set(trained)
    if both := sum(image in known for image in validated):
        yield f"{both} of {len(val)} validation images are also among the images trained on"
    known.update(validated)
    if both := sum(image in known for image in tested):
        yield f"{both} of {len(test)} test images are also in the training set"
    labels: dict[bytes, set[int]] = {}
    y = torch.cat([train.y, val.y, test.y]).tolist()
    for image, label in zip([*trained, *validated, *tested], y, strict=True):
        labels.setdefault(image, set()).add(label)
    if noisy := sum(len(given) > 1 for given in labels.values()):
        yield f"{noisy} images occur more than once, with different labels; look for wrong ones"
    counts = np.bincount(train.y.numpy()) + np.bincount(val.y.numpy())
    most, fewest = int(counts.argmax()), int(counts.argmin())
    if counts[most] > _IMBALANCE * counts[fewest]:
        yield (
            f"classes are unequal: {classes[most]!r} has {counts[most]} training images, "
            f"{classes[fewest]!r} has {counts[fewest]}"
        )


def stratified(
    y: Labels, take: int, generator: np.random.Generator, *, least: int = 1, spare: int = 1
) -> tuple[Labels, Labels]:
    """Indices of `take` samples in the class proportions of `y`, and of all the others, in random orders.

    Not in all orders alike: the others begin with classes of which enough were taken first.

    least, spare: at least so many of each class are among the taken and among the others; `take` gives way.
    """
    quota = _quota(np.bincount(y), take, least=least, spare=spare)
    order = generator.permutation(len(y))
    taken = np.zeros(len(y), dtype=bool)
    for label, count in enumerate(quota):
        taken[order[y[order] == label][:count]] = True
    return order[taken[order]], order[~taken[order]]


def _quota(counts: Labels, take: int, *, least: int, spare: int) -> Labels:
    """How many of each class to take: the method of largest remainders within [least, counts - spare]."""
    top: Labels = counts - spare
    take = min(max(take, least * len(counts)), int(top.sum()))
    share = counts * (take / counts.sum())
    quota: Labels = np.clip(np.floor(share).astype(np.int64), least, top)
    while quota.sum() < take:
        quota[np.where(quota < top, share - quota, -np.inf).argmax()] += 1
    while quota.sum() > take:
        quota[np.where(quota > least, quota - share, -np.inf).argmax()] -= 1
    return quota


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
