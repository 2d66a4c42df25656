"""Images and labels that cannot be learned from are refused by the name of what is wrong with them."""

import zipfile

import numpy as np
import pytest
import torch
from using import TINY, Attack, refused

import nas

DRAW = np.random.default_rng(0)
X = DRAW.integers(0, 255, (60, 8, 8)).astype(np.uint8)
Y = np.arange(60) % 3


def _with(pixel):
    x = X / 255.0
    x[7, 3, 5] = pixel
    return x


@pytest.mark.parametrize(
    ("x", "y", "more", "names"),
    [
        pytest.param(_with(np.nan), Y, {}, ["x_train", "image 7"], id="NaN"),
        pytest.param(_with(np.inf), Y, {}, ["x_train", "image 7"], id="infinity"),
        pytest.param(X.astype(np.int32) + 300, Y, {}, ["x_train"], id="integers beyond bytes"),
        pytest.param(X * 1j, Y, {}, ["x_train", "complex"], id="complex"),
        pytest.param(X.astype(str), Y, {}, ["x_train"], id="text"),
        pytest.param(X[:, None, None], Y, {}, ["x_train", "(60, 1, 1, 8, 8)"], id="five axes"),
        pytest.param(X.reshape(60, 64), Y, {}, ["x_train", "(60, 64)"], id="rows of features"),
        pytest.param([X[0], X[1][:4]], [0, 1], {}, ["x_train"], id="of two sizes"),
        pytest.param(X[:0], Y[:0], {}, ["x_train"], id="none"),
        pytest.param(X[:, :0], Y, {}, ["x_train"], id="of no height"),
        pytest.param(X, Y[:50], {}, ["60", "50"], id="fewer labels than images"),
        pytest.param(X, np.eye(3)[Y], {}, ["y_train", "(60, 3)"], id="one-hot labels"),
        pytest.param(X, 0 * Y, {}, ["y_train"], id="one class"),
        pytest.param(X, Y + 0.5, {}, ["y_train", "0.5"], id="half labels"),
        pytest.param(X, np.where(Y == 1, np.nan, Y), {}, ["y_train", "NaN"], id="labels that are NaN"),
        pytest.param(X, Y - 1, {}, ["y_train", "-1"], id="negative labels"),
        pytest.param(X, 5 * Y, {}, ["y_train", "10"], id="labels with gaps"),
        pytest.param(X, [None] * 60, {}, ["y_train"], id="no labels"),
        pytest.param(X, Y, {"classes": ["cat", "dog"]}, ["y_train", "2"], id="beyond the named classes"),
        pytest.param(X, Y, {"classes": ["cat", "cat", "dog"]}, ["cat"], id="a class twice"),
        pytest.param(X[:4], Y[:4], {}, ["y_train"], id="too few images"),
        pytest.param(X, (np.arange(60) == 59).astype(int), {}, ["y_train", "'1'"], id="a class of one image"),
        pytest.param(X, Y, {"x_test": X[:9]}, ["y_test"], id="half a test part"),
        pytest.param(X, Y, {"x_test": X[:9, :4], "y_test": Y[:9]}, ["(1, 4, 8)"], id="test of another size"),
        pytest.param(X, Y, {"x_test": X[:9], "y_test": Y[:9] + 1}, ["y_test"], id="test of another class"),
        pytest.param(X, Y, {"val_fraction": 1.0}, ["val_fraction"], id="nothing to train on"),
        pytest.param(X, Y, {"test_fraction": np.nan}, ["test_fraction"], id="a part that is NaN"),
    ],
)
def test_arrays_that_cannot_be_learned_from_are_named(x, y, more, names):
    refused(lambda: nas.task_from_arrays(x, y, **more), *names)


def test_arrays_that_can_be_are_taken_as_they_are():
    """The twin of the refusals above: what was right with them is not refused."""
    task = nas.task_from_arrays(X, Y)
    assert (task.num_classes, task.image_shape) == (3, (1, 8, 8))
    same = nas.task_from_arrays(torch.tensor(X)[:, None], torch.tensor(Y))
    assert torch.equal(same.train.x, task.train.x)
    assert torch.equal(same.train.y, task.train.y)
    named = nas.task_from_arrays(X, np.array(["cat", "dog", "eel"])[Y])
    assert named.classes == ("cat", "dog", "eel")
    assert torch.equal(named.test.y, task.test.y)


def test_an_archive_of_arrays_that_is_none_or_damaged_is_named(tmp_path):
    path = tmp_path / "photos.npz"
    np.savez(path, x_train=X, y_train=Y)
    assert nas.load_task(f"npz:{path}").num_classes == 3
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 16
    for damaged in (b"", whole[: len(whole) // 2], bytes(flipped), b"\x80\x04junk", whole[100:]):
        path.write_bytes(damaged)
        refused(lambda: nas.load_task(f"npz:{path}"), "photos.npz", by=nas.DataError)
    np.savez(path, x_train=X)
    refused(lambda: nas.load_task(f"npz:{path}"), "photos.npz", "y_train", by=nas.DataError)
    refused(lambda: nas.load_task(f"npz:{tmp_path}/none.npz"), f"{tmp_path}/none.npz", by=nas.DataError)


def test_pickles_in_an_archive_of_arrays_are_never_loaded(tmp_path):
    attack = np.array([Attack(tmp_path / "ran")] * 60, dtype=object)
    np.savez(tmp_path / "photos.npz", x_train=X, y_train=attack)
    refused(lambda: nas.load_task(f"npz:{tmp_path}/photos.npz"), "y_train", by=nas.DataError)
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_promises_more_than_it_holds_takes_no_memory(tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000)}"
    text = header.ljust(117).encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "photos.npz", "w") as archive:
        archive.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        archive.writestr("y_train.npy", b"")
    refused(lambda: nas.load_task(f"npz:{tmp_path}/photos.npz"), "photos.npz", by=nas.DataError)


@pytest.fixture
def photos(tmp_path):
    """A folder of small pictures of two classes."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(12):
            pixels = DRAW.integers(0, 255, (12, 12)).astype(np.uint8)
            image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{number}.png")
    return tmp_path / "photos"


def _rubbish(folder):
    (folder / "cat" / "3.png").write_bytes(b"no picture")
    return "cat/3.png"


def _cut(folder):
    path = folder / "dog" / "5.png"
    path.write_bytes(path.read_bytes()[:60])
    return "dog/5.png"


def _larger(folder):
    from PIL import Image

    Image.new("L", (20, 12)).save(folder / "dog" / "7.png")
    return "dog/7.png"


def _no_images(folder):
    (folder / "eel").mkdir()
    return "eel"


def _one_class(folder):
    (folder / "dog").rename(folder.parent / "dog")
    return "'cat'"


@pytest.mark.parametrize("spoil", [_rubbish, _cut, _larger, _no_images, _one_class])
def test_a_folder_of_pictures_that_cannot_be_used_says_which(photos, spoil):
    assert nas.load_task(f"folder:{photos}").classes == ("cat", "dog")
    name = spoil(photos)
    refused(lambda: nas.load_task(f"folder:{photos}"), name, by=nas.DataError)


def test_pictures_of_different_sizes_can_be_stretched_and_bad_ones_left_out_on_demand(photos):
    _larger(photos)
    _rubbish(photos)
    task = nas.load_task(f"folder:{photos}@10x6", lenient=True)
    assert task.image_shape == (1, 6, 10)
    assert [line.split(":")[0] for line in task.skipped] == ["cat/3.png"]
    for size in ("0", "10x-6", "99999"):
        refused(lambda size=size: nas.load_task(f"folder:{photos}@{size}"), "photos")


def test_a_folder_without_pictures_is_named(tmp_path):
    refused(lambda: nas.load_task(f"folder:{tmp_path}"), tmp_path, by=nas.DataError)
    refused(lambda: nas.load_task(f"folder:{tmp_path}/none"), f"{tmp_path}/none", by=nas.DataError)


def test_images_too_few_for_a_batch_are_searched_or_refused_in_words(tmp_path):
    """Twelve images leave five to train on: fewer than any batch."""
    task = nas.task_from_arrays(X[:12], Y[:12], name="dozen")
    result = nas.search("toy", task, "random", out=tmp_path / "run", settings=TINY)
    assert 0 <= result.metrics["test_acc"] <= 1


def test_data_that_changed_since_a_run_began_are_refused_unless_forced(tmp_path):
    out = tmp_path / "run"
    nas.search("toy", nas.task_from_arrays(X, Y, name="mine"), "random", out=out, settings=TINY)
    changed = X.copy()
    changed[3, 2, 1] ^= 1
    again = nas.task_from_arrays(changed, Y, name="mine")
    refused(lambda: nas.search("toy", again, "random", out=out, settings=TINY), "mine", by=nas.DataError)
