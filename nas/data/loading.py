"""Tasks made of data by name, of arrays or of data sets: checked, divided, fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

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
    usual_padding,
)
from nas.data.task import Split, Task, as_float
from nas.errors import ConfigError, DataError
from nas.seeding import rng

_FLAT_STD = 1e-6  # below it a channel is constant, and dividing by it would only enlarge rounding errors


def load_task(
    name: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.5,
    test_fraction: float = 0.2,
    lenient: bool = False,
) -> Task:
    """Loads `digits`, `fashion_mnist`, `cifar10`, `cifar100`, `npz:PATH` or `folder:PATH`.

    `folder:PATH@64` or `@64x48` (width x height) stretches the images of a folder to one size.

    val_fraction: share of the training images held out for the search; the default is the even split between
        weights and alphas of DARTS (Liu et al. 2019, section 3).
    test_fraction: share held out for the final test when the source has no test part of its own.
    lenient: leave out any number of images of a folder that cannot be used, and name all in `Task.skipped`.
    """
    source = datasets.read(name, lenient=lenient)
    return _task(source, name=name, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)


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
    return _task(source, name=name, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)


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
) -> Task:
    """Makes a task of map-style data sets, such as torchvision's without random transforms.

    Images are read once, in order: Pillow images, numpy [H, W] or [H, W, C], or tensors [H, W] or [C, H, W].
    """
    x_train, y_train = datasets.collect(train, who=f"{name}: train")
    x_test, y_test = (None, None) if test is None else datasets.collect(test, who=f"{name}: test")
    names = None if classes is None else tuple(classes)
    return _task(
        Source(x_train, y_train, x_test, y_test, classes=names, flip=flip),
        name=name,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
    )


def _task(
    source: Source,
    *,
    name: str,
    seed: int,
    val_fraction: float,
    test_fraction: float,
) -> Task:
    """Checks a source and divides it; equal arguments give equal parts."""
    for what, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < value < 1:
            raise ConfigError(f"{what} is {value}, but must lie between 0 and 1, both excluded, e.g. 0.2")
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
    taken, rest = stratified(pool.y.numpy(), round(val_fraction * len(pool)), draw)
    train, val = pool.at(rest), pool.at(taken)
    mean, std = mean_and_std(train.x)
    known = {digest(image) for part in (train, val) for image in part.x.numpy()}
    leaked = sum(digest(image) in known for image in test.x.numpy())
    leak = f"{leaked} of {len(test)} test images are also in the training set; nas audit names them"
    return Task(
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
        notes=(leak,) if leaked else (),
        files=source.files,
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


def stratified(
    y: Labels, take: int, generator: np.random.Generator, *, spare: int = 1
) -> tuple[Labels, Labels]:
    """Indices of `take` samples in the class proportions of `y`, and of all the others, in random orders.

    Not in all orders alike: the others begin with classes of which enough were taken first.

    spare: at least so many of each class are among the others, and one among the taken; `take` gives way.
    """
    quota = _quota(np.bincount(y), take, spare=spare)
    order = generator.permutation(len(y))
    taken = np.zeros(len(y), dtype=bool)
    for label, count in enumerate(quota):
        taken[order[y[order] == label][:count]] = True
    return order[taken[order]], order[~taken[order]]


def _quota(counts: Labels, take: int, *, spare: int) -> Labels:
    """How many of each class to take: the method of largest remainders within [1, counts - spare]."""
    top: Labels = counts - spare
    take = min(max(take, len(counts)), int(top.sum()))
    share = counts * (take / counts.sum())
    quota: Labels = np.clip(np.floor(share).astype(np.int64), 1, top)
    while quota.sum() < take:
        quota[np.where(quota < top, share - quota, -np.inf).argmax()] += 1
    while quota.sum() > take:
        quota[np.where(quota > 1, quota - share, -np.inf).argmax()] -= 1
    return quota
