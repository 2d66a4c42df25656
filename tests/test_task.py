import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from nas.data.task import Task, load_task, task_from_arrays, task_from_datasets
from nas.errors import ConfigError, DataError
from nas.seeding import rng


def random_images(count: int, *shape: int, stream: str = "images") -> np.ndarray:
    return rng(0, stream).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int, classes: int = 4) -> np.ndarray:
    return np.arange(count) % classes


def small(**settings) -> Task:
    return task_from_arrays(random_images(80, 8, 8, 3), labels(80), **settings)


def rows(x: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in x}


def test_it_is_told_in_a_line():
    task = small()
    assert repr(task) == "<Task 'arrays': 4 classes, images (3, 8, 8), 32 train, 32 val, 16 test>"
    assert repr(task.test) == "<Split of 16 images (3, 8, 8) of torch.uint8>"


def test_a_list_of_images_of_different_sizes_is_named():
    ragged = [image[: 4 + i % 2] for i, image in enumerate(random_images(80, 8, 8))]
    with pytest.raises(
        DataError, match="arrays: x_train is a list whose 80 parts differ in shape, but all must"
    ):
        task_from_arrays(ragged, labels(80))
    with pytest.raises(DataError, match="arrays: y_train is a list whose 2 parts differ in shape"):
        task_from_arrays(random_images(2, 8, 8), [[0], [0, 1]])


# Splits


def test_digits_are_split_into_disjoint_stratified_parts():
    task = load_task("digits")
    assert (task.image_shape, task.num_classes, task.pad, task.flip) == ((1, 8, 8), 10, 1, False)
    assert (len(task.train), len(task.val), len(task.test)) == (719, 719, 359)
    assert task.train.x.dtype == torch.uint8 and task.train.y.dtype == torch.int64
    assert int(task.train.x.max()) == 255 and int(task.train.x.min()) == 0
    for part in (task.train, task.val, task.test):
        share = torch.bincount(part.y, minlength=10) / len(part)
        assert (share - 0.1).abs().max() < 0.01
    assert not rows(task.train.x) & rows(task.val.x)
    assert not (rows(task.train.x) | rows(task.val.x)) & rows(task.test.x)


def test_parts_hold_every_image_once_with_its_label():
    x = random_images(80, 8, 8, 3)
    y = labels(80)
    known = {image.transpose(2, 0, 1).tobytes(): label for image, label in zip(x, y, strict=True)}
    task = task_from_arrays(x, y)
    seen = {}
    for part in (task.train, task.val, task.test):
        seen |= {image.numpy().tobytes(): int(label) for image, label in zip(part.x, part.y, strict=True)}
    assert sum(map(len, (task.train, task.val, task.test))) == 80
    assert seen == known


def test_the_official_test_part_is_kept_whole_and_in_order():
    x_test = random_images(10, 8, 8, stream="test")
    task = task_from_arrays(random_images(40, 8, 8), labels(40), x_test, labels(10), val_fraction=0.25)
    assert (len(task.train), len(task.val), len(task.test)) == (30, 10, 10)
    assert torch.equal(task.test.x[:, 0], torch.from_numpy(x_test))


def test_the_task_does_not_alias_the_callers_arrays():
    x, x_test = random_images(40, 8, 8), random_images(10, 8, 8, stream="test")
    task = task_from_arrays(x, labels(40), x_test, labels(10))
    before = [part.x.clone() for part in (task.train, task.val, task.test)]
    x[:], x_test[:] = 0, 0
    for part, kept in zip((task.train, task.val, task.test), before, strict=True):
        assert torch.equal(part.x, kept)


def test_splits_depend_on_the_seed_alone():
    one, same, other = small(seed=1), small(seed=1), small(seed=2)
    assert torch.equal(one.train.x, same.train.x) and one.fingerprint == same.fingerprint
    assert rows(one.train.x) != rows(other.train.x)


@pytest.mark.parametrize(("limit", "kept"), [(20, 20), (101, 101), (1438, 1438), (5000, 1438)])
def test_limit_keeps_so_many_training_images_and_the_whole_test_part(limit, kept):
    task = load_task("digits", limit=limit)
    assert len(task.train) + len(task.val) == kept
    assert len(task.test) == 359
    assert set(task.train.y.tolist()) == set(task.val.y.tolist()) == set(range(10))


def test_train_and_val_joins_both():
    task = small()
    joined = task.train_and_val()
    assert len(joined) == len(task.train) + len(task.val)
    assert torch.equal(joined.y[len(task.train) :], task.val.y)


@pytest.mark.parametrize("side", [(32, 4), (64, 4), (28, 2), (8, 1), (4, 1)])
def test_padding_follows_the_image_size(side):
    size, pad = side
    assert task_from_arrays(random_images(12, size, size), labels(12, 2)).pad == pad


# Pixels


def test_normalise_gives_zero_mean_and_unit_variance_on_the_train_split():
    task = small()
    normal = task.normalise(task.train.x)
    assert normal.dtype == torch.float32
    assert normal.mean((0, 2, 3)).abs().max() < 1e-5
    assert (normal.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    expected = (task.train.x[0].double() / 255).mean((1, 2))
    got = (task.normalise(task.train.x[:1]).double().mean((0, 2, 3))) * task.std + task.mean
    assert torch.allclose(got, expected, atol=1e-6)


def test_statistics_come_from_the_train_split_only():
    task = small()
    assert torch.allclose(task.mean, (task.train.x.double() / 255).mean((0, 2, 3)).float())
    assert not torch.allclose(task.mean, (task.val.x.double() / 255).mean((0, 2, 3)).float(), atol=1e-6)


def test_floats_stay_floats_on_their_own_scale():
    x = rng(0, "floats").normal(100.0, 20.0, (60, 8, 8))
    task = task_from_arrays(x, labels(60))
    assert task.train.x.dtype == torch.float32
    assert abs(float(task.mean) - 100) < 2 and abs(float(task.std) - 20) < 2


def test_a_constant_channel_is_not_divided_by_zero():
    x = random_images(40, 8, 8, 2)
    x[..., 1] = 7
    task = task_from_arrays(x, labels(40))
    assert float(task.std[1]) == 1
    assert task.normalise(task.train.x)[:, 1].abs().max() < 1e-6


def test_tensors_come_channels_first_and_arrays_channels_last():
    x = random_images(40, 8, 6, 3)
    arrays = task_from_arrays(x, labels(40))
    tensors = task_from_arrays(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(labels(40)))
    assert arrays.image_shape == tensors.image_shape == (3, 8, 6)
    assert torch.equal(arrays.train.x, tensors.train.x) and arrays.fingerprint == tensors.fingerprint


def test_bfloat16_tensors_are_taken():
    task = task_from_arrays(torch.rand(20, 1, 4, 4, generator=torch.Generator()).bfloat16(), labels(20, 2))
    assert task.train.x.dtype == torch.float32


def test_to_moves_every_tensor():
    task = small().to("meta")
    tensors = [task.mean, task.std, *(t for s in (task.train, task.val, task.test) for t in (s.x, s.y))]
    assert {t.device.type for t in tensors} == {"meta"}


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
    ]
    assert len({task.fingerprint for task in tasks}) == len(tasks)
    assert task_from_arrays(x.copy(), y.copy(), name="moved").fingerprint == tasks[0].fingerprint


def test_the_fingerprint_covers_the_official_test_part():
    x, y, x_test, y_test = (
        random_images(40, 8, 8),
        labels(40),
        random_images(4, 8, 8, stream="test"),
        labels(4),
    )
    changed = x_test.copy()
    changed[3, 7, 7] ^= 1
    tests = [(x_test, y_test), (changed, y_test), (x_test, y_test[::-1])]
    assert len({task_from_arrays(x, y, *test).fingerprint for test in tests}) == 3


# Notes


def test_images_in_both_parts_are_noted():
    x = random_images(40, 8, 8)
    x_test = np.concatenate([random_images(7, 8, 8, stream="test"), x[:3]])
    y_test = np.concatenate([labels(7), labels(40)[:3]])
    notes = task_from_arrays(x, labels(40), x_test, y_test).notes
    assert notes == ("3 of 10 test images are also in the training set",)


def test_images_in_train_and_val_are_noted():
    x = random_images(40, 8, 8)
    x[:] = x[0]
    notes = task_from_arrays(x, labels(40), random_images(4, 8, 8, stream="test"), labels(4)).notes
    assert notes == (
        "20 of 20 validation images are also among the images trained on",
        "1 images occur more than once, with different labels; look for wrong ones",
    )


def test_images_with_several_labels_are_noted():
    x, y = random_images(40, 8, 8), labels(40, 2)
    x[30:36] = x[1:7]
    y[30:36] = [y[1], y[2], *(1 - y[3:7])]
    notes = task_from_arrays(x, y, random_images(4, 8, 8, stream="test"), labels(4, 2)).notes
    assert notes[-1] == "4 images occur more than once, with different labels; look for wrong ones"


def test_very_unequal_classes_are_noted():
    y = np.array([0] * 110 + [1] * 10)
    official = random_images(2, 8, 8, stream="test"), [0, 1]
    assert task_from_arrays(random_images(110, 8, 8), y[10:], *official).notes == ()
    (note,) = task_from_arrays(random_images(120, 8, 8), y, *official).notes
    assert "'0' has 110" in note and "'1' has 10" in note


# Labels


def test_string_labels_are_named_in_sorted_order():
    y = np.array(["dog", "cat"] * 20)
    task = task_from_arrays(random_images(40, 8, 8), y, random_images(2, 8, 8), ["dog", "cat"])
    assert task.classes == ("cat", "dog")
    assert task.test.y.tolist() == [1, 0]


def test_string_labels_follow_given_classes():
    task = task_from_arrays(random_images(40, 8, 8), ["dog", "cat"] * 20, classes=("dog", "cat"))
    assert task.classes == ("dog", "cat")


def test_whole_floats_and_booleans_are_labels():
    assert task_from_arrays(random_images(40, 8, 8), labels(40).astype(float)).num_classes == 4
    assert task_from_arrays(random_images(40, 8, 8), labels(40, 2).astype(bool)).num_classes == 2


def with_label(value: float, dtype: type = float) -> np.ndarray:
    y = labels(40).astype(dtype)
    y[17] = value
    return y


@pytest.mark.parametrize(
    ("y", "classes", "match"),
    [
        (np.zeros(40, int), None, "all 40 labels are of one class"),
        (with_label(-1, int), None, r"1 of 40 labels are outside 0\.\.4 \(-1: 1\)"),
        (labels(40) + 1, None, r"10 of 40 labels are outside 0\.\.3 \(4: 10\)"),
        (with_label(10**12, int), None, "outside"),
        (labels(40), ("a", "b", "c"), r"10 of 40 labels are outside 0\.\.2 \(3: 10\)"),
        (labels(40), tuple("abcde"), r"1 of 5 classes have fewer than 3 images \('e': 0\)"),
        (labels(40), ("a", "b", "c", "c"), "not all different"),
        (
            with_label(0.5),
            None,
            r"1 of 40 labels are not whole numbers \(0 are NaN; the first is 0.5 at index 17",
        ),
        (with_label(np.nan), None, r"\(1 are NaN"),
        (with_label(np.inf), None, "not whole numbers"),
        (with_label(1e300), None, "not whole numbers"),
        (labels(40).astype(complex), None, "dtype complex128"),
        (labels(40).astype(object), None, "dtype object"),
        (labels(39), None, "40 images, but .* 39 labels"),
        (labels(40)[:, None], None, r"shape \(40, 1\)"),
        (labels(0), None, "empty"),
        (["dog", "cta"] * 20, ("cat", "dog"), "no class 'cta'; did you mean 'cat'"),
    ],
)
def test_bad_labels_are_refused(y, classes, match):
    with pytest.raises(DataError, match=match):
        task_from_arrays(random_images(40, 8, 8), y, classes=classes)


# Images


def with_pixel(value: float) -> np.ndarray:
    x = np.zeros((40, 8, 8, 3))
    x[5, 6, 7, 2] = value
    return x


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (
            with_pixel(np.nan),
            "1 pixels that are NaN or infinite, the first at image 5, row 6, column 7, channel 2",
        ),
        (with_pixel(-np.inf), "image 5, row 6"),
        (with_pixel(1e300), "infinite"),
        (random_images(40, 8), r"shape \(40, 8\)"),
        (random_images(40, 8, 8, 3)[None], "must be"),
        (random_images(40, 3, 8, 8), r"looks like \[N, C, H, W\]"),
        (torch.zeros(40, 8, 8, 3), r"looks like \[N, H, W, C\]"),
        (np.zeros((40, 0, 8), np.uint8), "empty"),
        (np.zeros((40, 8, 8), complex), "dtype complex128"),
        (np.zeros((40, 8, 8), object), "dtype object"),
        (np.full((40, 8, 8), 256), "integers from 256 to 256"),
        (np.full((40, 8, 8), -1), "must be in 0..255"),
    ],
)
def test_bad_images_are_refused(x, match):
    with pytest.raises(DataError, match=match):
        task_from_arrays(x, labels(40))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_too_few_images_are_refused(count):
    with pytest.raises(DataError, match=r"fewer than 3 images|one class"):
        task_from_arrays(random_images(count, 8, 8), labels(count))


def test_no_images_are_refused():
    with pytest.raises(DataError, match="empty"):
        task_from_arrays(random_images(0, 8, 8), labels(0))


def test_the_smallest_task_has_every_class_in_every_part():
    task = task_from_arrays(random_images(12, 8, 8), labels(12), val_fraction=0.01, test_fraction=0.99)
    assert [sorted(part.y.tolist()) for part in (task.train, task.val, task.test)] == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize(
    ("x_test", "y_test", "match"),
    [
        (random_images(4, 8, 9), labels(4), r"test images are \(1, 8, 9\)"),
        (random_images(4, 8, 8).astype(float), labels(4), "float32, but training"),
        (random_images(4, 8, 8), None, "y_test is missing"),
        (None, labels(4), "x_test is missing"),
        (random_images(4, 8, 8), labels(4) + 1, "x?y_test: 1 of 4 labels are outside"),
        (random_images(5, 8, 8), labels(4), "5 images"),
    ],
)
def test_a_test_part_that_does_not_fit_is_refused(x_test, y_test, match):
    with pytest.raises(DataError, match=match):
        task_from_arrays(random_images(40, 8, 8), labels(40), x_test, y_test)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2.0, float("nan")])
@pytest.mark.parametrize("what", ["val_fraction", "test_fraction"])
def test_fractions_outside_0_to_1_are_refused(what, value):
    with pytest.raises(ConfigError, match=what):
        small(**{what: value})


def test_a_limit_below_two_images_a_class_is_refused():
    with pytest.raises(ConfigError, match="limit is 19, but must be at least 20"):
        load_task("digits", limit=19)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ((9, 64), (9,), r"must be \[N, H, W\] or \[N, H, W, C\]; features .* x\[:, None\]"),
        ((9, 4, 4), (9, 1), r"one label for each image; use y.ravel\(\)"),
        ((9, 4, 4), (9, 3), r"one label for each image; of one-hot rows use y.argmax\(1\)"),
        ((9, 4, 4), (9, 3, 1), r"one label for each image$"),
    ],
)
def test_a_wrong_shape_says_how_to_mend_it(x, y, words):
    with pytest.raises(DataError, match=words):
        task_from_arrays(np.zeros(x, np.uint8), np.zeros(y, int))


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="no task 'digit'; did you mean 'digits'"):
        load_task("digit")


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


def test_pillow_images_are_converted_to_grey_or_colour():
    grey = [Image.fromarray(image) for image in random_images(20, 8, 8)]
    assert task_from_datasets(pairs([image.convert("LA") for image in grey])).image_shape == (1, 8, 8)
    assert task_from_datasets(pairs([image.convert("P") for image in grey])).image_shape == (3, 8, 8)
    transparent = [image.convert("P") for image in grey]
    for image in transparent:
        image.info["transparency"] = bytes(256)
    assert task_from_datasets(pairs(transparent)).image_shape == (3, 8, 8)


def test_data_sets_may_have_a_test_part_and_tensor_labels():
    train = [(image, torch.tensor(index % 2)) for index, image in enumerate(random_images(20, 8, 8))]
    task = task_from_datasets(train, pairs(list(random_images(4, 8, 8, stream="test"))), classes=("a", "b"))
    assert len(task.test) == 4 and task.classes == ("a", "b")


@pytest.mark.parametrize(
    ("dataset", "match"),
    [
        ([], "empty"),
        (iter(()), "is a tuple_iterator, wanted a data set with a length that is read by index"),
        (DataLoader(pairs([np.zeros((8, 8))])), "of a DataLoader give its `dataset`"),
        ([np.zeros((8, 8))], "must be"),
        ([("image", 0)], "has a str as image"),
        (pairs([np.zeros((8, 8)), np.zeros((8, 9))]), r"item 0 is \(8, 8\), item 1 is \(8, 9\)"),
        (pairs([np.zeros((8, 8)), np.zeros((8, 8, 3))]), "differ in size or channels"),
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
    assert rows(part.train.x) < rows(task.train.x)
    whole = torch.bincount(task.train.y, minlength=10)
    assert (torch.bincount(part.train.y, minlength=10) - 0.25 * whole).abs().max() <= 1
    assert part.val is task.val and part.test is task.test
    assert torch.equal(part.mean, task.mean) and torch.equal(part.std, task.std)
    assert len({task.fingerprint, part.fingerprint, task.subset(0.5).fingerprint}) == 3


def test_a_reduced_task_has_the_classes_in_their_proportions():
    task = load_task("digits")
    reduced = task.reduced(200)
    for part, whole in ((reduced.train, task.train), (reduced.val, task.val)):
        wanted = torch.bincount(whole.y, minlength=10) * len(part) / len(whole)
        assert (torch.bincount(part.y, minlength=10) - wanted).abs().max() <= 1


def test_a_subset_keeps_at_least_two_images_and_a_whole_one_is_the_task():
    task = small()
    assert len(task.subset(1e-9).train) == 2
    assert task.subset(1.0) is task


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share):
    with pytest.raises(ConfigError, match=r"share of training images is .* above 0 and at most 1"):
        small().subset(share)


def test_resized_images_are_means_over_areas():
    task = small()
    half = task.resized(4)
    for big, little in zip((task.train, task.val, task.test), (half.train, half.val, half.test), strict=True):
        means = big.x.float().unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
        assert little.x.dtype == torch.uint8
        assert torch.equal(little.x, means.round().to(torch.uint8))
        assert torch.equal(little.y, big.y)
    assert half.image_shape == (3, 4, 4)
    assert torch.equal(half.mean, task.mean) and torch.equal(half.std, task.std)
    assert len({task.fingerprint, half.fingerprint, task.resized(5).fingerprint}) == 3
    assert task.resized(8) is task


def test_resized_floats_stay_floats_and_keep_their_shape():
    x = rng(0, "x").random((40, 6, 12), dtype=np.float32)
    task = task_from_arrays(x, labels(40)).resized(3)
    assert task.image_shape == (1, 3, 6)
    assert task.train.x.dtype == torch.float32
    assert task.train.x.max() <= 1.0


def test_large_tasks_are_resized_in_parts(monkeypatch):
    whole = small().resized(3)
    monkeypatch.setattr("nas.data.arrays._PART", 7)
    assert torch.equal(small().resized(3).train.x, whole.train.x)


def test_padding_shrinks_with_the_images():
    task = task_from_arrays(random_images(40, 32, 32), labels(40))
    assert [task.resized(side).pad for side in (32, 24, 12, 8)] == [4, 2, 1, 1]


@pytest.mark.parametrize("side", [0, 9])
def test_images_can_only_shrink(side):
    with pytest.raises(ConfigError, match=f"side is {side}, but must be at least 1 and at most .* height, 8"):
        small().resized(side)


def unequal():
    """One class of 470 images and ten of three."""
    y = np.concatenate([np.zeros(470, int), np.repeat(np.arange(1, 11), 3)])
    x = np.random.default_rng(0).integers(0, 256, (500, 4, 4), dtype=np.uint8)
    return task_from_arrays(x, y, x[:22], np.repeat(np.arange(11), 2), val_fraction=0.3)


def test_a_reduced_task_keeps_an_image_of_every_class():
    task = unequal()
    reduced = task.reduced(60)
    assert (len(reduced.train), len(reduced.val)) == (42, 18)
    for split in (reduced.train, reduced.val):
        assert len(split.y.unique()) == 11


def test_subsets_keep_every_class_and_hold_each_other():
    task = unequal()
    images = [{bytes(x.numpy()) for x in task.subset(share).train.x} for share in (0.01, 0.04, 0.1, 0.5)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(images))
    assert len(task.subset(0.04).train.y.unique()) == 11
    assert len(task.subset(0.01).train) == 4
