"""A task holds every image once, split by its seed alone; less of one keeps its classes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from nas.data.loading import load_task, stratified, task_from_arrays, task_from_datasets
from nas.data.task import Task
from nas.errors import ConfigError, DataError
from nas.seeding import rng


def random_images(count: int, *shape: int, stream: str = "images") -> np.ndarray:
    return rng(0, stream).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int, classes: int = 4) -> np.ndarray:
    return np.arange(count) % classes


def small(**settings) -> Task:
    return task_from_arrays(random_images(80, 8, 8, 3), labels(80), **settings)


# Splits


def test_the_task_does_not_alias_the_callers_arrays():
    x, x_test = random_images(40, 8, 8), random_images(10, 8, 8, stream="test")
    task = task_from_arrays(x, labels(40), x_test, labels(10))
    before = [part.x.clone() for part in task.splits.values()]
    x[:], x_test[:] = 0, 0
    for part, kept in zip(task.splits.values(), before, strict=True):
        assert torch.equal(part.x, kept)


def test_the_smallest_task_has_every_class_in_every_part():
    task = task_from_arrays(random_images(12, 8, 8), labels(12), val_fraction=0.01, test_fraction=0.99)
    assert [sorted(part.y.tolist()) for part in task.splits.values()] == [[0, 1, 2, 3]] * 3


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(2, 40), min_size=1, max_size=8), share=st.floats(0, 1))
def test_stratified_takes_in_proportion_and_leaves_the_rest(counts, share):
    y = np.repeat(np.arange(len(counts)), counts)
    take = round(share * len(y))
    taken, rest = stratified(y, take, rng(0))
    assert sorted([*taken, *rest]) == list(range(len(y)))
    assert set(y[taken]) == set(y[rest]) == set(range(len(counts)))
    assert len(taken) == min(max(take, len(counts)), len(y) - len(counts))
    for label, count in enumerate(counts):
        exact = count * len(taken) / len(y)
        got = int((y[taken] == label).sum())
        # One image a class is kept on either side, at the cost of the other classes.
        assert abs(got - exact) <= len(counts)
        assert 1 <= got <= count - 1


# Fingerprint


def test_the_fingerprint_changes_with_a_pixel_a_label_the_seed_and_the_fractions():
    x, y = random_images(80, 8, 8, 3), labels(80)
    pixel, label = x.copy(), y.copy()
    pixel[79, 7, 7, 2] ^= 1
    label[79] = (label[79] + 1) % 4
    tasks = [
        task_from_arrays(x, y),
        task_from_arrays(pixel, y),
        task_from_arrays(x, label),
        task_from_arrays(x, y, seed=1),
        task_from_arrays(x, y, val_fraction=0.25),
        task_from_arrays(x, y, test_fraction=0.25),
        task_from_arrays(x, y, classes="abcd"),
        task_from_arrays(x, y, x[:4], y[:4]),
        task_from_arrays(x, y, pixel[76:], y[:4]),
        task_from_arrays(x, y, x[:4], y[3::-1]),
    ]
    assert len({task.fingerprint for task in tasks}) == len(tasks)
    assert task_from_arrays(x.copy(), y.copy(), name="moved").fingerprint == tasks[0].fingerprint


def test_images_of_the_test_part_that_are_trained_on_are_noted():
    x = random_images(40, 8, 8)
    x_test = np.concatenate([random_images(7, 8, 8, stream="test"), x[:3]])
    y_test = np.concatenate([labels(7), labels(40)[:3]])
    (note,) = task_from_arrays(x, labels(40), x_test, y_test).notes
    assert note.startswith("3 of 10 test images are also in the training set")


# What is refused


def with_pixel(value: float) -> np.ndarray:
    x = np.zeros((40, 8, 8, 3))
    x[5, 6, 7, 2] = value
    return x


X = random_images(40, 8, 8)


@pytest.mark.parametrize(
    ("x", "y", "more", "match"),
    [
        (X, labels(40), {"classes": "abcde"}, r"1 of 5 classes have fewer than 3 images \('e': 0\)"),
        (X, 1e300 * labels(40), {}, "not whole numbers"),
        (X, ["dog", "cta"] * 20, {"classes": ("cat", "dog")}, "no class 'cta'; did you mean 'cat'"),
        (with_pixel(1e300), labels(40), {}, "infinite, the first at image 5, row 6, column 7, channel 2"),
        (torch.zeros(40, 8, 8, 3), labels(40), {}, r"looks like \[N, H, W, C\]"),
        (X, labels(40), {"x_test": X[:4] / 255, "y_test": labels(4)}, "float32, but training"),
    ],
)
def test_bad_arrays_are_refused_with_what_to_do(x, y, more, match):
    with pytest.raises(DataError, match=match):
        task_from_arrays(x, y, **more)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: load_task("digits").reduced(19), "19 images are too few for 10 classes"),
        (lambda: small().subset(0.0), "share of training images is"),
        (lambda: small().subset(1.1), "share of training images is"),
        (lambda: small().resized(9), "side is 9"),
    ],
)
def test_bad_settings_are_refused(call, match):
    with pytest.raises(ConfigError, match=match):
        call()


# Map-style data sets


def pairs(images: list[object]) -> list[tuple[object, int]]:
    return [(image, index % 2) for index, image in enumerate(images)]


def test_data_sets_of_pillow_images_arrays_and_tensors_are_the_same_task():
    x = random_images(20, 8, 6, 3)
    forms = [
        [Image.fromarray(image) for image in x],
        list(x),
        [torch.from_numpy(image).permute(2, 0, 1) for image in x],
    ]
    tasks = [task_from_datasets(pairs(form)) for form in forms]
    assert {task.image_shape for task in tasks} == {(3, 8, 6)}
    assert len({task.fingerprint for task in tasks}) == 1


@pytest.mark.parametrize(
    ("dataset", "match"),
    [
        (iter(()), "is a tuple_iterator, wanted a data set with a length that is read by index"),
        (DataLoader(pairs([np.zeros((8, 8))])), "of a DataLoader give its `dataset`"),
        ([("image", 0)], "has a str as image"),
        (pairs([np.zeros((8, 8)), np.zeros((8, 9))]), r"item 0 is \(8, 8\), item 1 is \(8, 9\)"),
    ],
)
def test_data_sets_that_do_not_fit_are_refused(dataset, match):
    with pytest.raises(DataError, match=match):
        task_from_datasets(dataset)


# Less of a task


def test_a_subset_is_a_share_of_the_training_images_of_every_class():
    task = load_task("digits")
    part = task.subset(0.25)
    assert len(part.train) == 180
    whole = torch.bincount(task.train.y, minlength=10)
    assert (torch.bincount(part.train.y, minlength=10) - 0.25 * whole).abs().max() <= 1
    assert part.val is task.val and part.test is task.test
    assert len(task.subset(1e-9).train) == 2
    assert task.subset(1.0) is task and task.resized(8) is task
    for less, other in ((part, task.subset(0.5)), (task.resized(4), task.resized(5))):
        assert torch.equal(less.mean, task.mean) and torch.equal(less.std, task.std)
        assert len({task.fingerprint, less.fingerprint, other.fingerprint}) == 3


def unequal():
    """One class of 470 images and ten of three."""
    y = np.concatenate([np.zeros(470, int), np.repeat(np.arange(1, 11), 3)])
    x = np.random.default_rng(0).integers(0, 256, (500, 4, 4), dtype=np.uint8)
    return task_from_arrays(x, y, x[:22], np.repeat(np.arange(11), 2), val_fraction=0.3)


def test_less_of_a_task_of_unequal_classes_keeps_every_class_while_there_is_room():
    task = unequal()
    reduced = task.reduced(60)
    assert (len(reduced.train), len(reduced.val)) == (42, 18)
    assert len(reduced.train.y.unique()) == len(reduced.val.y.unique()) == 11
    images = [{bytes(x.numpy()) for x in task.subset(share).train.x} for share in (0.01, 0.04, 0.1, 0.5)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(images))
    assert len(task.subset(0.04).train.y.unique()) == 11
    assert len(task.subset(0.01).train) == 4
