"""Readers give what is in the files, find them where they are looked for, and name what is wrong."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nas.data import datasets
from nas.data.decode import fitted
from nas.data.loading import load_task
from nas.errors import ConfigError, DataError
from nas.seeding import rng

OFFICIAL_FASHION = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


def random_images(count: int, *shape: int, stream: str = "images") -> np.ndarray:
    return rng(0, stream).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """An empty $NAS_DATA on a machine where no data set is installed."""
    monkeypatch.setenv("NAS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets, "_FASHION_SYSTEM_FOLDER", tmp_path / "system")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_names_are_matched_to_readers():
    with pytest.raises(ConfigError, match="no task 'cifar1'; did you mean 'cifar1"):
        datasets.read("cifar1")
    for name in ("photos", "zip:x", "npz:", "folder:~no-such-user/photos"):
        with pytest.raises(ConfigError, match=r"task '(zip|npz|folder|photos)"):
            datasets.read(name)


def test_digits_are_those_of_scikit_learn():
    source, theirs = datasets.digits(), load_digits()
    np.testing.assert_array_equal(source.x_train, np.rint(theirs.images * (255 / 16)))
    np.testing.assert_array_equal(source.y_train, theirs.target)
    assert source.x_train.dtype == np.uint8 and source.x_train.max() == 255


# Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder: Path, *, gz: bool = False, train: int = 60, test: int = 20) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    x, x_test = random_images(train, 28, 28), random_images(test, 28, 28, stream="test")
    parts = [x, np.arange(train) % 10, x_test, np.arange(test) % 10]
    for name, array in zip(datasets._FASHION_FILES, parts, strict=True):
        content = idx(array.astype(np.uint8))
        path = folder / (f"{name}.gz" if gz else name)
        path.write_bytes(gzip.compress(content) if gz else content)
    return x_test


def test_fashion_mnist_as_installed_here():
    if not OFFICIAL_FASHION.is_file():
        pytest.skip(f"{OFFICIAL_FASHION} is not on this machine")
    source = datasets.read("fashion_mnist")
    assert source.x_train.shape == (60000, 28, 28)
    assert source.x_test is not None and source.x_test.shape == (10000, 28, 28)
    assert np.bincount(source.y_train).tolist() == [6000] * 10
    assert source.y_train[:5].tolist() == [9, 0, 0, 3, 0] and source.classes[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("place", "gz"),
    [("data", False), ("data/fashion-mnist", True), ("home/.cache/nas", False), ("system", True)],
)
def test_fashion_mnist_is_found_plain_or_gzipped(data, place, gz):
    x_test = write_fashion(data.parent / place, gz=gz)
    task = load_task("fashion_mnist")
    assert task.image_shape == (1, 28, 28) and not task.flip and task.pad == 2
    assert (len(task.train), len(task.val), len(task.test)) == (30, 30, 20)
    assert np.array_equal(task.test.x[:, 0].numpy(), x_test)
    write_fashion(data / "fashion-mnist", test=10)  # which comes before all but itself and $NAS_DATA
    assert len(load_task("fashion_mnist").test) == (20 if place == "data" else 10)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fashion_mnist", "train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-binary.tar.gz from "),
        ("cifar100", "cifar-100-binary.tar.gz from "),
    ],
)
def test_absent_data_say_what_to_put_where(data, name, file):
    with pytest.raises(DataError, match=f"{file}.*NAS_DATA") as error:
        load_task(name)
    assert str(data) in str(error.value)


@pytest.mark.parametrize("gz", [False, True])
def test_a_short_idx_file_is_refused_at_every_length(tmp_path, gz):
    content = idx(random_images(3, 4, 4))
    content = gzip.compress(content) if gz else content
    path = tmp_path / ("images.gz" if gz else "images")
    path.write_bytes(content)
    assert datasets.read_idx(path).shape == (3, 4, 4)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="images"):
            datasets.read_idx(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (idx(np.zeros(3, np.uint8)) + b"x", "no whole IDX file"),
        (b"\x00\x00\x0d\x01" + bytes(8), "begins with 00000d01"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, "no whole IDX file"),
    ],
)
def test_a_file_that_is_not_idx_is_refused(tmp_path, content, match):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(DataError, match=match):
        datasets.read_idx(tmp_path / "labels")


# CIFAR


def write_cifar10(folder: Path, *, batch: int = 20) -> np.ndarray:
    folder.mkdir(parents=True)
    x = random_images(6 * batch, 3, 32, 32)
    y = np.arange(6 * batch, dtype=np.uint8)[:, None] % 10
    records = np.concatenate([y, x.reshape(6 * batch, -1)], axis=1)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, part in zip(names, np.split(records, 6), strict=True):
        (folder / name).write_bytes(part.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class{c}" for c in range(10)) + "\n\n")
    return x


def test_cifar10_is_read_from_its_binary_version(data):
    x = write_cifar10(data / "cifar-10-batches-bin")
    task = load_task("cifar10")
    assert task.image_shape == (3, 32, 32) and task.flip and task.pad == 4 and task.classes[3] == "class3"
    assert np.array_equal(task.test.x.numpy(), x[100:])
    both = task.train_and_val()
    known = {image.tobytes(): index % 10 for index, image in enumerate(x[:100])}
    assert {i.numpy().tobytes(): int(c) for i, c in zip(both.x, both.y, strict=True)} == known


def test_cifar100_has_the_fine_labels(data):
    folder = data.parent / "home/.cache/nas/cifar-100-binary"
    folder.mkdir(parents=True)
    for name, count in (("train.bin", 400), ("test.bin", 100)):
        fine = np.arange(count)[:, None] % 100
        records = np.concatenate([fine // 5, fine, random_images(count, 3072, stream=name)], axis=1)
        (folder / name).write_bytes(records.astype(np.uint8).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(f"class{c}" for c in range(100)))
    task = load_task("cifar100")
    assert task.num_classes == 100 and task.test.y.tolist() == list(range(100))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("data_batch_3.bin", lambda path: path.write_bytes(path.read_bytes()[:-1]), "records of 3073 bytes"),
        ("test_batch.bin", Path.unlink, ""),
        ("batches.meta.txt", Path.unlink, ""),
    ],
)
def test_a_damaged_or_absent_cifar_file_is_named(data, name, change, words):
    write_cifar10(data / "cifar-10-batches-bin")
    change(data / "cifar-10-batches-bin" / name)
    with pytest.raises(DataError, match=f"{name}.*{words}"):
        load_task("cifar10")


# npz


def test_a_damaged_npz_gives_its_true_arrays_or_a_data_error(tmp_path):
    path = tmp_path / "data.npz"
    x, y = random_images(4, 8, 8), np.array([0, 1, 0, 1])
    np.savez_compressed(path, x_train=x, y_train=y)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        flipped = whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :]
        for damaged in (whole[:position], flipped):
            path.write_bytes(damaged)
            try:
                source = datasets.read(f"npz:{path}")
            except DataError:
                refused += 1
            else:
                assert np.array_equal(source.x_train, x) and np.array_equal(source.y_train, y)
    assert refused > 1.5 * len(whole)


# Image folders


def write_folder(
    root: Path, *, classes: str = "ab", count: int = 10, mode: str = "RGB", stream: str = "f"
) -> None:
    for name in classes:
        (root / name).mkdir(parents=True)
        for number, pixels in enumerate(random_images(count, 6, 8, 3, stream=stream + name)):
            Image.fromarray(pixels).convert(mode).save(root / name / f"{number}.png")


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_a_folder_of_class_folders(tmp_path, mode, channels):
    write_folder(tmp_path, classes="ba", mode=mode)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    task = load_task(f"folder:{tmp_path}")
    assert task.classes == ("a", "b") and task.image_shape == (channels, 6, 8)
    assert sum(map(len, task.splits.values())) == 20 and task.skipped == ()


def test_a_folder_with_train_and_test(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", count=3, stream="t")
    task = load_task(f"folder:{tmp_path}")
    assert (len(task.train), len(task.val), len(task.test)) == (10, 10, 6)
    assert task.test.y.tolist() == [0, 0, 0, 1, 1, 1]
    write_folder(tmp_path / "test", classes="c")
    with pytest.raises(DataError, match="no class 'c'"):
        load_task(f"folder:{tmp_path}")


def test_one_corrupt_image_in_a_hundred_is_skipped_and_named_more_are_refused(tmp_path):
    write_folder(tmp_path, count=50)
    whole = (tmp_path / "a" / "7.png").read_bytes()
    (tmp_path / "a" / "7.png").write_bytes(whole[: len(whole) // 2])
    task = load_task(f"folder:{tmp_path}")
    assert sum(map(len, task.splits.values())) == 99
    (skipped,) = task.skipped
    assert skipped.startswith("a/7.png: ")
    (tmp_path / "b" / "9.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 100 images cannot be read, but at most 1% .*a/7.png.*b/9.png"):
        load_task(f"folder:{tmp_path}")


def test_mixed_colours_name_two_files(tmp_path):
    write_folder(tmp_path)
    Image.new("L", (8, 6)).save(tmp_path / "b" / "3.png")
    with pytest.raises(DataError, match=r"a/0.png is 8x6 colour, .*b/3.png is 8x6 grey"):
        load_task(f"folder:{tmp_path}")


@pytest.mark.parametrize(("odd", "channels"), [(Image.new("L", (9, 5)), 1), (Image.new("P", (9, 5)), 3)])
def test_a_size_behind_a_folder_stretches_as_predict_does_and_one_colour_makes_all_colour(
    tmp_path, odd, channels
):
    write_folder(tmp_path, mode="L")
    odd.save(tmp_path / "b" / "3.png")
    task = load_task(f"folder:{tmp_path}@10x12")
    assert task.image_shape == (channels, 12, 10) and task.name.endswith("@10x12")
    assert sum(map(len, task.splits.values())) == 20 and len(task.files) == 20
    file = tmp_path / task.files[int(task.train.origin[0])]
    assert np.array_equal(task.train.x[0].numpy(), fitted(file.read_bytes(), (channels, 12, 10)))


def test_a_folder_whose_name_ends_in_a_size_is_read_as_it_is(tmp_path):
    write_folder(tmp_path / "photos@4")
    assert load_task(f"folder:{tmp_path}/photos@4").image_shape == (3, 6, 8)
    assert load_task(f"folder:{tmp_path}/photos@4@5").image_shape == (3, 5, 5)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.setattr("nas.data.decode.MOST_PIXELS", 40)
    with pytest.raises(DataError, match="20 of 20 images cannot be read"):
        load_task(f"folder:{tmp_path}")


def test_what_is_not_there_is_said_with_what_to_write_or_install(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no such folder .*; a size to stretch images to is written as @64"):
        load_task(f"folder:{tmp_path}@big")
    write_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"pip install 'nas-engine\[vision\]'"):
        load_task(f"folder:{tmp_path}")
