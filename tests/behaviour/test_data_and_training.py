"""Tasks from arrays and files, their splits and statistics, recipes, and that training is what they say."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import surface
import torch
import torch.nn.functional as F
from small_spaces import chain
from torch import nn

import nas

PLAIN = {"epochs": 10, "batch": 32, "lr": 0.1, "weight_decay": 5e-4}


def pictures(count=80, channels=3, *, seed=0):
    """Random bytes `[N, H, W, C]`, no two alike, and labels of four classes."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 6, 5, channels), dtype=np.uint8), np.arange(count) % 4


def parts(task):
    return task.train, task.val, task.test


def rows(split):
    """The images of a split with their labels, as a multiset."""
    return Counter(
        (image.numpy().tobytes(), int(label)) for image, label in zip(split.x, split.y, strict=True)
    )


def same(one, other):
    return all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(parts(one), parts(other), strict=True)
    )


# -- layouts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: torch.from_numpy(x).permute(0, 3, 1, 2),
        lambda x: x.astype(np.int64),
        lambda x: x.tolist(),
    ],
    ids=["bytes, channels last", "tensor, channels first", "wide integers", "lists"],
)
def test_all_layouts_of_colour_images_are_one_task(layout):
    x, y = pictures()
    task = nas.task_from_arrays(layout(x), y)
    assert task.image_shape == (3, 6, 5) and task.train.x.dtype == torch.uint8
    assert same(task, nas.task_from_arrays(x, y))
    assert sum(map(rows, parts(task)), Counter()) == Counter(
        (image.transpose(2, 0, 1).tobytes(), int(label)) for image, label in zip(x, y, strict=True)
    )


def test_grey_images_may_leave_out_their_channel():
    x, y = pictures(channels=1)
    one = nas.task_from_arrays(x, y)
    assert one.image_shape == (1, 6, 5)
    assert same(one, nas.task_from_arrays(x[..., 0], y))
    assert same(one, nas.task_from_arrays(torch.from_numpy(x[..., 0]), torch.from_numpy(y)))


def test_floats_keep_their_scale_and_are_seen_alike():
    x, y = pictures()
    task, floats = nas.task_from_arrays(x, y), nas.task_from_arrays(x / 255.0, y)
    assert floats.train.x.dtype == torch.float32
    assert torch.allclose(floats.normalise(floats.train.x), task.normalise(task.train.x), atol=1e-5)


def test_labels_are_numbers_or_names():
    x, y = pictures()
    names = np.array(["owl", "cat", "dog", "ant"])[y]
    named, numbers = nas.task_from_arrays(x, names), nas.task_from_arrays(x, y)
    assert named.classes == ("ant", "cat", "dog", "owl") and numbers.classes == ("0", "1", "2", "3")
    ordered = nas.task_from_arrays(x, names, classes=["owl", "cat", "dog", "ant"])
    assert ordered.classes == ("owl", "cat", "dog", "ant") and same(ordered, numbers)
    assert same(numbers, nas.task_from_arrays(x, y.astype(float)))


def test_data_sets_and_files_are_the_same_task_as_their_arrays(tmp_path):
    x, y = pictures()
    x_test, y_test = pictures(20, seed=1)
    wanted = nas.task_from_arrays(x, y, x_test, y_test)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    assert same(nas.load_task(f"npz:{tmp_path / 'data.npz'}"), wanted)
    train, test = (list(zip(images, labels, strict=True)) for images, labels in ((x, y), (x_test, y_test)))
    assert same(nas.task_from_datasets(train, test), wanted)


def test_what_cannot_be_learned_from_is_refused():
    x, y = pictures()
    wrong = [
        (x[:-1], y, "79"),
        (x.astype(float) * np.nan, y, "NaN"),
        (x.reshape(80, -1), y, "shape"),
        (x, y + 1, "label"),
        (x, y + 0.5, "label"),
        (x, np.zeros(80, int), "class"),
        (x, np.where(np.arange(80) < 1, 4, y), "class"),
        (x.astype(np.int64) + 100, y, "255"),
        (x.astype(complex), y, "dtype"),
    ]
    for images, labels, subject in wrong:
        with pytest.raises(nas.DataError, match=subject):
            nas.task_from_arrays(images, labels)


# -- splits and statistics ---------------------------------------------------------------------------------


def test_digits():
    task = nas.load_task("digits")
    assert (task.image_shape, task.num_classes, len(task.classes)) == ((1, 8, 8), 10, 10)
    # 1,797 images, a fifth to test; one half of the rest to validate.
    assert [len(part) for part in parts(task)] == [719, 719, 359]
    assert task.train.x.dtype == torch.uint8 and task.train.x.max() == 255
    assert not task.flip  # a mirrored digit is another one, or none


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: nas.load_task("digits", seed=seed),
        lambda seed: nas.task_from_arrays(*surface.stripes(150), seed=seed),
    ],
)
def test_splits_are_disjoint_stratified_and_follow_their_seed(make):
    one, again, other = make(0), make(0), make(1)
    assert same(one, again) and one.fingerprint == again.fingerprint
    assert not same(one, other) and one.fingerprint != other.fingerprint
    train, val, test = map(rows, parts(one))
    assert not train & val and not train & test and not val & test
    everything = sum(map(rows, parts(other)), Counter())
    assert train + val + test == everything
    shares = [torch.bincount(part.y, minlength=one.num_classes) / len(part) for part in parts(one)]
    assert (torch.stack(shares) - torch.stack(shares).mean(0)).abs().max() < 0.012


def test_splits_are_shuffled_where_the_source_is_sorted_by_class():
    x, y = pictures(400)
    task = nas.task_from_arrays(x[np.argsort(y)], np.sort(y))
    for part in parts(task):
        assert len(part.y[:12].unique()) > 1 and len(part.y[-12:].unique()) > 1


def test_an_official_test_part_is_kept_whole_and_in_order():
    x, y = pictures()
    x_test, y_test = pictures(12, seed=1)
    task = nas.task_from_arrays(x, y, x_test, y_test, val_fraction=0.25)
    assert [len(part) for part in parts(task)] == [60, 20, 12]
    assert torch.equal(task.test.x, torch.from_numpy(x_test).permute(0, 3, 1, 2))
    assert task.test.y.tolist() == y_test.tolist()


def test_normalisation_is_that_of_the_training_split_alone():
    x, y = pictures()
    task = nas.task_from_arrays(x, y)
    pixels = task.train.x.double() / 255
    assert torch.allclose(task.mean.double(), pixels.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(task.std.double(), pixels.std((0, 2, 3), correction=0), atol=1e-6)
    seen = task.normalise(task.train.x).double()
    assert seen.mean((0, 2, 3)).abs().max() < 1e-5 and (seen.std((0, 2, 3)) - 1).abs().max() < 1e-2
    # However bright the others are.
    known = {image.numpy().tobytes() for image in task.train.x}
    brighter = x.copy()
    for image in brighter:
        if image.transpose(2, 0, 1).tobytes() not in known:
            image[:] = 255 - image // 8
    other = nas.task_from_arrays(brighter, y)
    assert torch.equal(other.train.x, task.train.x)
    assert torch.equal(other.mean, task.mean) and torch.equal(other.std, task.std)


def test_smaller_tasks_keep_their_classes_and_the_test_part():
    task = nas.load_task("digits")
    for smaller, sizes in ((task.reduced(100), [50, 50]), (task.subset(0.1), [72, 719])):
        assert [len(smaller.train), len(smaller.val)] == sizes
        assert len(smaller.train.y.unique()) == 10 and torch.equal(smaller.test.x, task.test.x)
        assert not rows(smaller.train) - rows(task.train)
    assert not rows(task.subset(0.1).train) - rows(task.subset(0.3).train)
    halved = task.resized(4)
    assert halved.image_shape == (1, 4, 4)
    blocks = task.test.x.float().unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    assert (halved.test.x.float() - blocks).abs().max() <= 0.5


@pytest.mark.parametrize("method", ["evolution", "darts"])
def test_the_test_split_never_influences_what_is_found_or_learned(tmp_path, method):
    """With other images and labels in it, everything but the test figures is the same, to the bit."""
    x, y = surface.stripes()
    x_test, y_test = surface.stripes(30, seed=1)
    given = {"trials": 4, "searcher": {"population": 2}} if method == "evolution" else {}
    found = {}
    for name, images, labels in (("as it is", x_test, y_test), ("other", 255 - x_test, y_test // 2)):
        task = nas.task_from_arrays(x, y, images, labels, flip=False)
        result = surface.search(tmp_path / name, method, on=task, top_k=2, repeats=1, top_k_epochs=1, **given)
        found[name] = surface.outcome(result)
    one, other = found.values()
    for what in ("history", "model", "arrays", "others"):
        assert one[what] == other[what]
    assert one["architecture"]["choices"] == other["architecture"]["choices"]
    changed = {k for k in one["metrics"] if one["metrics"][k] != other["metrics"][k]}
    assert "test_loss" in changed and all(name.startswith("test_") for name in changed)


# -- recipes and training ------------------------------------------------------------------------------------


def test_recipes_refuse_what_is_out_of_range_by_name():
    nas.Recipe(**PLAIN)
    wrong = {
        "epochs": (0, 1.5, True),
        "batch": (1, 0),
        "lr": (0.0, -0.1, math.inf, math.nan, "0.1"),
        "weight_decay": (-1e-4, math.nan),
        "lr_min": (0.2, -0.1),
        "momentum": (1.0, -0.1),
        "warmup_epochs": (10, -1),
        "schedule": ("cosine",),
        "label_smoothing": (1.0, -0.1),
        "clip": (-1.0,),
        "auxiliary": (-0.4,),
        "drop_path": (1.0,),
        "cutout": (2.5, -1),
        "mixup": (-0.2,),
        "ema": (1.0,),
        "crop": (1,),
        "flip": ("yes",),
        "precision": ("float8",),
        "execution": ("fast",),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(nas.ConfigError, match=name):
                nas.Recipe(**PLAIN | {name: value})
    with pytest.raises(TypeError):
        nas.Recipe(**PLAIN, learning_rate=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        nas.Recipe(**PLAIN).lr = 0.2


@pytest.mark.parametrize("table", ["retrain", "trial"])
def test_a_job_refuses_a_wrong_recipe_before_it_begins(tmp_path, table):
    for wrong in ({"learning_rate": 0.1}, {"lr": -1.0}, {"momentum": 1.0}):
        (name,) = wrong
        with pytest.raises(nas.ConfigError, match=name):
            surface.search(tmp_path / "run", "random", trials=1, **{table: wrong})
    assert not (tmp_path / "run").exists()


def classifier():
    """A linear classifier whose weights begin at 0, behind a decision that changes nothing."""

    class Linear(nn.Linear):
        def reset_parameters(self):
            with torch.no_grad():
                self.weight.zero_(), self.bias.zero_()

    def build(choose):
        same = choose.op("same", {"one": nn.Identity, "other": nn.Identity})
        return nn.Sequential(same, nn.Flatten(), Linear(64, 3))

    return nas.Space("linear", build)


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_last_training_is_descent_by_its_recipe_on_all_images_but_the_test_split(tmp_path, nesterov):
    """Against torch's own SGD, on whole batches: rates by a cosine from `lr` to `lr_min` after a warm-up."""
    task, epochs, lr, lr_min, warmup = surface.task(), 6, 0.05, 0.01, 2.0
    recipe = {
        **{"epochs": epochs, "batch": 500, "lr": lr, "lr_min": lr_min, "warmup_epochs": warmup, "ema": 0.0},
        **{"momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.02, "label_smoothing": 0.1, "clip": 0.5},
        **{"crop": False, "flip": False, "mixup": 0.0, "cutout": 0},
    }
    result = surface.search(tmp_path, space=classifier(), trials=1, epochs=1, retrain=recipe)

    x = task.normalise(torch.cat([task.train.x, task.val.x])).flatten(1)
    y = torch.cat([task.train.y, task.val.y])
    weight, bias = torch.zeros(3, 64, requires_grad=True), torch.zeros(3, requires_grad=True)
    sgd = torch.optim.SGD([weight, bias], lr=lr, momentum=0.8, nesterov=nesterov, weight_decay=0.02)
    for step in range(epochs):
        cosine = lr_min + (lr - lr_min) * (1 + math.cos(math.pi * (step - warmup) / (epochs - warmup))) / 2
        sgd.param_groups[0]["lr"] = lr * (step + 1) / warmup if step < warmup else cosine
        sgd.zero_grad()
        F.cross_entropy(x @ weight.T + bias, y, label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_([weight, bias], 0.5)
        sgd.step()
    learned = surface.weights(result.folder)
    for wanted, name in ((weight, "weight"), (bias, "bias")):
        (found,) = (tensor for key, tensor in learned.items() if key.endswith(name))
        assert torch.allclose(found, wanted.detach(), rtol=1e-4, atol=1e-6), name


def relabelled(task, part):
    """The same task with other labels in one of its splits."""
    split = getattr(task, part)
    return dataclasses.replace(task, **{part: dataclasses.replace(split, y=(split.y + 1) % 3)})


def test_a_trial_is_trained_on_the_training_split_and_measured_on_the_validation_split():
    recipe = nas.Recipe(epochs=3, batch=16, lr=0.1, weight_decay=5e-4, crop=False)

    def trained(task, seed=0):
        """The figures of an architecture, and the network that they are of."""
        networks = []
        evaluate = nas.Trained(chain(), task, recipe, judge=lambda trial, network: networks.append(network))
        return evaluate(nas.Trial(0, (0, 0, 0, 1), 3), np.random.default_rng(seed)), networks[0].eval()

    def right(task, network):
        return (network(x).argmax(1) == task.val.y).float().mean().item()

    task = surface.task()
    x = task.normalise(task.val.x)
    metrics, network = trained(task)
    other_metrics, same_network = trained(relabelled(task, "val"))
    _, another = trained(relabelled(task, "train"))
    _, otherwise_drawn = trained(task, seed=1)
    with torch.no_grad():
        assert metrics["val_acc"] == pytest.approx(right(task, network), abs=1e-6)
        loss = F.cross_entropy(network(x), task.val.y).item()
        assert metrics["val_loss"] == pytest.approx(loss, rel=1e-4)
        # Other validation labels change the figures and not the network; other training labels change it.
        assert torch.equal(same_network(x), network(x))
        assert other_metrics["val_acc"] == pytest.approx(right(relabelled(task, "val"), network), abs=1e-6)
        assert not torch.allclose(another(x), network(x), atol=1e-3)
        assert not torch.allclose(otherwise_drawn(x), network(x), atol=1e-3)
