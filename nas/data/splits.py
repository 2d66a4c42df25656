"""Divides a source into train, validation and test: checked, stratified, seeded and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nas.data.arrays import Array, Labels, Source, encode_labels, image_tensor
from nas.errors import ConfigError, DataError
from nas.seeding import rng

_IMBALANCE = 10


@dataclass(frozen=True, eq=False)
class Samples:
    """Checked images and their classes.

    x: [N, C, H, W] uint8 or float32.
    y: [N] in 0..C-1.
    origin: [N] positions in the source, whose training part comes first, then its test part.
    """

    x: Array
    y: Labels
    origin: Labels

    def __len__(self) -> int:
        return len(self.y)

    def at(self, indices: Labels) -> Samples:
        """A copy of the samples at `indices`, in their order."""
        return Samples(self.x[indices], self.y[indices], self.origin[indices])


@dataclass(frozen=True, eq=False)
class Division:
    """A source, divided.

    train, val, test: disjoint parts.
    classes: names in the order of the class numbers.
    fingerprint: SHA-256 in hex of the parts in their order, the class names and the seed.
    notes: findings about the data, one sentence each.
    """

    train: Samples
    val: Samples
    test: Samples
    classes: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...]


def divide(
    source: Source,
    *,
    name: str,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    limit: int | None = None,
) -> Division:
    """Checks a source and divides it; equal arguments give equal parts.

    val_fraction, test_fraction: in (0, 1); the latter counts only when the source has no test part.
    limit: keeps so many of the images that are not for testing, before the validation part is taken.
    """
    _check_fraction("val_fraction", val_fraction)
    _check_fraction("test_fraction", test_fraction)
    pool, classes = _checked(
        source.x_train, source.y_train, f"{name}: x_train", f"{name}: y_train", source.classes
    )
    test = _official_test(source, pool, name=name, classes=classes)
    # Every class must reach every part that is still to be taken from the pool.
    check_class_sizes(pool.y, classes, who=f"{name}: y_train", least=3 if test is None else 2)

    generator = rng(seed, "split")
    if test is None:
        taken, rest = stratified(pool.y, round(test_fraction * len(pool)), generator, spare=2)
        test, pool = pool.at(taken), pool.at(rest)
    if limit is not None:
        pool = _limited(pool, limit, generator, classes=len(classes))
    taken, rest = stratified(pool.y, round(val_fraction * len(pool)), generator)
    train, val = pool.at(rest), pool.at(taken)
    return Division(
        train,
        val,
        test,
        classes,
        fingerprint=_fingerprint((train, val, test), classes, seed),
        notes=(*source.notes, *_findings(train, val, test, classes)),
    )


def _check_fraction(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(
            f"{what} is {value}, but must lie between 0 and 1, both excluded; 0.2 or 0.5 are usual"
        )


def _checked(
    x: Array, y: Array, x_name: str, y_name: str, classes: Sequence[str] | None
) -> tuple[Samples, tuple[str, ...]]:
    images = image_tensor(x, who=x_name)
    labels, names = encode_labels(y, who=y_name, classes=classes)
    if len(images) != len(labels):
        raise DataError(
            f"{x_name} has {len(images)} images, but {y_name} has {len(labels)} labels; give each image one"
        )
    return Samples(images, labels, np.arange(len(labels))), names


def _official_test(source: Source, pool: Samples, *, name: str, classes: Sequence[str]) -> Samples | None:
    if source.x_test is None and source.y_test is None:
        return None
    if source.x_test is None or source.y_test is None:
        missing = "x_test" if source.x_test is None else "y_test"
        raise DataError(f"{name} has only half of its test part: {missing} is missing; give both or neither")
    test, _ = _checked(source.x_test, source.y_test, f"{name}: x_test", f"{name}: y_test", classes)
    if test.x.shape[1:] != pool.x.shape[1:] or test.x.dtype != pool.x.dtype:
        raise DataError(
            f"{name}: test images are {test.x.shape[1:]} (C, H, W) of {test.x.dtype}, but training images "
            f"are {pool.x.shape[1:]} of {pool.x.dtype}; bring both to one form"
        )
    # The images as those of the other parts, not a view of the caller's memory.
    return Samples(test.x.copy(), test.y, len(pool) + test.origin)


def _limited(pool: Samples, limit: int, generator: np.random.Generator, *, classes: int) -> Samples:
    if limit < 2 * classes:
        raise ConfigError(f"limit is {limit}, but must be at least {2 * classes}, two images of each class")
    kept, _ = stratified(pool.y, min(limit, len(pool)), generator, least=2, spare=0)
    return pool.at(kept)


def _fingerprint(parts: Sequence[Samples], classes: Sequence[str], seed: int) -> str:
    digest = hashlib.sha256(repr((seed, tuple(classes))).encode())
    for part in parts:
        digest.update(repr((part.x.shape, str(part.x.dtype))).encode())
        digest.update(part.x.data)
        digest.update(part.y.data)
    return digest.hexdigest()


def _findings(train: Samples, val: Samples, test: Samples, classes: Sequence[str]) -> Iterator[str]:
    """What is suspicious, but may be meant: images in two parts or of two classes, very unequal classes."""
    trained, validated, tested = ([digest(image) for image in part.x] for part in (train, val, test))
    if both := _count_in(validated, trained):
        yield f"{both} of {len(val)} validation images are also among the images trained on"
    if both := _count_in(tested, [*trained, *validated]):
        yield f"{both} of {len(test)} test images are also in the training set"
    labels: dict[bytes, set[int]] = {}
    for digests, part in ((trained, train), (validated, val), (tested, test)):
        for found, label in zip(digests, part.y.tolist(), strict=True):
            labels.setdefault(found, set()).add(label)
    if noisy := sum(len(given) > 1 for given in labels.values()):
        yield f"{noisy} images occur more than once, with different labels; look for wrong ones"
    counts = np.bincount(train.y) + np.bincount(val.y)
    most, fewest = int(counts.argmax()), int(counts.argmin())
    if counts[most] > _IMBALANCE * counts[fewest]:
        yield (
            f"classes are unequal: {classes[most]!r} has {counts[most]} training images, "
            f"{classes[fewest]!r} has {counts[fewest]}"
        )


def _count_in(digests: Sequence[bytes], seen: Iterable[bytes]) -> int:
    known = set(seen)
    return sum(found in known for found in digests)


def digest(image: Array) -> bytes:
    """What stands for an image's pixels, 16 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def check_class_sizes(y: Labels, classes: Sequence[str], *, who: str, least: int) -> None:
    """Refuses labels of one class only, or a class of fewer than `least` images."""
    counts = np.bincount(y, minlength=len(classes))
    if np.count_nonzero(counts) < 2:
        raise DataError(
            f"{who}: all {len(y)} labels are of one class ({classes[int(counts.argmax())]!r}), "
            "but a classifier needs at least two"
        )
    small = np.flatnonzero(counts < least)
    if len(small):
        listed = ", ".join(f"{classes[c]!r}: {counts[c]}" for c in small[:5])
        raise DataError(
            f"{who}: {len(small)} of {len(classes)} classes have fewer than {least} images ({listed}), "
            "too few to be in every split; add images or leave these classes out"
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
