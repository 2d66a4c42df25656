import gzip
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.data import datasets
from nas.data.image_io import fitted
from nas.data.task import load_task
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
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


# Names


def test_names_are_matched_to_readers(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="no task 'cifar1'; did you mean 'cifar1"):
        datasets.read("cifar1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.npz").touch()
    for path, kind in (("mine.npz", "npz"), (str(tmp_path), "folder")):
        with pytest.raises(ConfigError, match=f"no task '{path}', but .* such a path; write {kind}:{path}"):
            datasets.read(path)
    with pytest.raises(ConfigError, match="no task 'zip:x'"):
        datasets.read("zip:x")
    with pytest.raises(ConfigError, match="write npz:PATH"):
        datasets.read("npz:")


# Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder: Path, *, gz: bool = False, train: int = 60, test: int = 20) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    x, x_test = random_images(train, 28, 28), random_images(test, 28, 28, stream="test")
    parts = [x, np.arange(train) % 10, x_test, np.arange(test) % 10]
    for name, array in zip(datasets._FASHION_FILES, parts, strict=True):
        content = idx(array.astype(np.uint8))
        (folder / f"{name}.gz").write_bytes(gzip.compress(content)) if gz else (folder / name).write_bytes(
            content
        )
    return x_test


def test_digits_are_read_without_an_import_of_scikit_learn_or_by_it(monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "sklearn.datasets", None)
        own = datasets.digits()
    monkeypatch.setattr(datasets, "find_spec", lambda _: None)
    theirs = datasets.digits()
    assert own.x_train.shape == (1797, 8, 8) and own.x_train.max() == 255
    for ours, wanted in ((own.x_train, theirs.x_train), (own.y_train, theirs.y_train)):
        assert ours.dtype == wanted.dtype
        np.testing.assert_array_equal(ours, wanted)


def test_fashion_mnist_as_installed_here():
    if not OFFICIAL_FASHION.is_file():
        pytest.skip(f"{OFFICIAL_FASHION} is not on this machine")
    source = datasets.read("fashion_mnist")
    assert source.x_train.shape == (60000, 28, 28)
    assert source.x_test is not None and source.x_test.shape == (10000, 28, 28)
    assert np.bincount(source.y_train).tolist() == [6000] * 10
    assert source.y_train[:5].tolist() == [9, 0, 0, 3, 0] and source.classes[9] == "Ankle boot"


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("place", ["data", "data/fashion-mnist", "home/.cache/nas", "system"])
def test_fashion_mnist_is_found_plain_or_gzipped(data, place, gz):
    x_test = write_fashion(data.parent / place, gz=gz)
    task = load_task("fashion_mnist")
    assert task.image_shape == (1, 28, 28) and not task.flip and task.pad == 2
    assert (len(task.train), len(task.val), len(task.test)) == (30, 30, 20)
    assert np.array_equal(task.test.x[:, 0].numpy(), x_test)


def test_nas_data_comes_first(data):
    write_fashion(data.parent / "home/.cache/nas", test=20)
    write_fashion(data / "fashion-mnist", test=10)
    assert len(load_task("fashion_mnist").test) == 10


def test_absent_fashion_mnist_says_what_to_put_where(data):
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*looked in.*NAS_DATA") as error:
        load_task("fashion_mnist")
    assert str(data) in str(error.value) and "github.com" in str(error.value)


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
        (idx(np.zeros(3, np.uint8)) + b"x", "4 bytes of data, but its header says 3"),
        (b"\x00\x00\x0d\x01" + bytes(8), "begins with 00000d01"),
        (b"<html>not found</html>", "begins with 3c68746d"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, "header says"),
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


def write_cifar100(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, count in (("train.bin", 400), ("test.bin", 100)):
        fine = np.arange(count)[:, None] % 100
        pixels = random_images(count, 3072, stream=name)
        (folder / name).write_bytes(
            np.concatenate([fine // 5, fine, pixels], axis=1).astype(np.uint8).tobytes()
        )
    (folder / "fine_label_names.txt").write_text("\n".join(f"class{c}" for c in range(100)))


def test_cifar10_is_read_from_its_binary_version(data):
    x = write_cifar10(data / "cifar-10-batches-bin")
    task = load_task("cifar10")
    assert task.image_shape == (3, 32, 32) and task.flip and task.pad == 4 and task.classes[3] == "class3"
    assert np.array_equal(task.test.x.numpy(), x[100:])
    both = task.train_and_val()
    known = {image.tobytes(): index % 10 for index, image in enumerate(x[:100])}
    assert {i.numpy().tobytes(): int(c) for i, c in zip(both.x, both.y, strict=True)} == known


def test_cifar100_has_the_fine_labels(data):
    write_cifar100(data.parent / "home/.cache/nas/cifar-100-binary")
    task = load_task("cifar100")
    assert task.num_classes == 100 and task.test.y.tolist() == list(range(100))


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b""])
def test_a_cifar_file_of_a_wrong_length_is_refused(data, change):
    write_cifar10(data / "cifar-10-batches-bin")
    path = data / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"data_batch_3.bin has .* records of 3073 bytes"):
        load_task("cifar10")


@pytest.mark.parametrize("name", ["data_batch_5.bin", "batches.meta.txt"])
def test_an_absent_cifar_file_is_named(data, name):
    write_cifar10(data / "cifar-10-batches-bin")
    (data / "cifar-10-batches-bin" / name).unlink()
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        load_task("cifar10")


@pytest.mark.parametrize(("name", "file"), [("cifar10", "cifar-10-binary"), ("cifar100", "cifar-100-binary")])
def test_absent_cifar_says_what_to_put_where(data, name, file):
    with pytest.raises(DataError, match=f"{file}.tar.gz from https.*NAS_DATA") as error:
        load_task(name)
    assert str(data) in str(error.value)


class TorchvisionCifar:
    """What is used of torchvision.datasets.CIFAR10, holding data under ~/.cache/nas only."""

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        assert not download
        if not root.endswith("home/.cache/nas"):
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        self.data = random_images(40 if train else 20, 32, 32, 3, stream=str(train))
        self.targets = [index % 10 for index in range(len(self.data))]
        self.classes = [f"class{c}" for c in range(10)]


def test_cifar_comes_from_torchvision_when_installed(data, monkeypatch):
    fake = types.SimpleNamespace(datasets=types.SimpleNamespace(CIFAR10=TorchvisionCifar, CIFAR100=None))
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    task = load_task("cifar10")
    assert task.image_shape == (3, 32, 32) and len(task.test) == 20 and task.classes[9] == "class9"


# npz


def test_npz_with_and_without_a_test_part(tmp_path):
    x, y = random_images(40, 8, 8, 3), np.array(["ant", "bee"] * 20)
    np.savez(tmp_path / "one.npz", x_train=x, y_train=y)
    np.savez_compressed(tmp_path / "two.npz", x_train=x, y_train=y, x_test=x[:4] // 2, y_test=y[:4])
    one, two = load_task(f"npz:{tmp_path}/one.npz"), load_task(f"npz:{tmp_path}/two.npz")
    assert one.name == f"npz:{tmp_path}/one.npz" and one.classes == ("ant", "bee")
    assert (len(one.test), len(two.test)) == (8, 4)
    assert one.image_shape == two.image_shape == (3, 8, 8)


def test_npz_faults(tmp_path):
    path = tmp_path / "data.npz"
    with pytest.raises(DataError, match=r"no such file .looked from"):
        load_task(f"npz:{path}")
    np.savez(path, x=np.zeros(3), y_train=np.zeros(3))
    with pytest.raises(DataError, match="holds x, y_train, but not both x_train and y_train"):
        load_task(f"npz:{path}")
    np.savez(path, x_train=random_images(4, 8, 8), y_train=np.array(["a", None, "b", "c"], dtype=object))
    with pytest.raises(DataError, match=r"cannot be read .Object arrays cannot be loaded"):
        load_task(f"npz:{path}")
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"not an .npz archive"):
        load_task(f"npz:{tmp_path}/data.npy")


def test_a_damaged_npz_gives_its_true_arrays_or_a_data_error(tmp_path):
    path = tmp_path / "data.npz"
    x, y = random_images(4, 8, 8), np.array([0, 1, 0, 1])
    np.savez_compressed(path, x_train=x, y_train=y)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :],
        ):
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


@pytest.mark.parametrize(
    ("mode", "channels"), [("RGB", 3), ("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)]
)
def test_a_folder_of_class_folders(tmp_path, mode, channels):
    write_folder(tmp_path, classes="ba", mode=mode)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    task = load_task(f"folder:{tmp_path}")
    assert task.classes == ("a", "b") and task.image_shape == (channels, 6, 8)
    assert sum(map(len, (task.train, task.val, task.test))) == 20 and task.skipped == ()


def test_a_folder_with_train_and_test(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", count=3, stream="t")
    (tmp_path / "val").mkdir()
    task = load_task(f"folder:{tmp_path}")
    assert (len(task.train), len(task.val), len(task.test)) == (10, 10, 6)
    assert task.test.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert task.notes == ("val/ beside train/ is not used",)


def test_a_test_folder_of_an_unknown_class_is_refused(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", classes="ac")
    with pytest.raises(DataError, match="no class 'c'"):
        load_task(f"folder:{tmp_path}")


def test_one_corrupt_image_in_a_hundred_is_skipped_and_named(tmp_path):
    write_folder(tmp_path, count=50)
    (tmp_path / "a" / "7.png").write_bytes(b"not an image")
    task = load_task(f"folder:{tmp_path}")
    assert sum(map(len, (task.train, task.val, task.test))) == 99
    (skipped,) = task.skipped
    assert skipped.startswith("a/7.png: cannot identify")


def test_more_corrupt_images_are_refused(tmp_path):
    write_folder(tmp_path, count=50)
    whole = (tmp_path / "a" / "7.png").read_bytes()
    (tmp_path / "a" / "7.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "9.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 100 images cannot be read, but at most 1% .*a/7.png.*b/9.png"):
        load_task(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("odd", "said"),
    [(Image.new("RGB", (9, 6)), "9x6 colour"), (Image.new("L", (8, 6)), "8x6 grey")],
)
def test_mixed_sizes_and_colours_name_two_files(tmp_path, odd, said):
    write_folder(tmp_path)
    odd.save(tmp_path / "b" / "3.png")
    with pytest.raises(DataError, match=f"a/0.png is 8x6 colour, .*b/3.png is {said}"):
        load_task(f"folder:{tmp_path}")


@pytest.mark.parametrize(("odd", "channels"), [(Image.new("L", (9, 5)), 1), (Image.new("P", (9, 5)), 3)])
def test_a_size_behind_a_folder_stretches_and_one_colour_makes_all_colour(tmp_path, odd, channels):
    write_folder(tmp_path, mode="L")
    odd.save(tmp_path / "b" / "3.png")
    task = load_task(f"folder:{tmp_path}@10x12")
    assert task.image_shape == (channels, 12, 10) and task.name.endswith("@10x12")
    assert sum(map(len, (task.train, task.val, task.test))) == 20 and len(task.files) == 20


def test_a_stretched_image_is_what_predict_makes_of_its_file(tmp_path):
    write_folder(tmp_path)
    task = load_task(f"folder:{tmp_path}@7")
    file = tmp_path / task.files[int(task.train.origin[0])]
    assert np.array_equal(task.train.x[0].numpy(), fitted(file.read_bytes(), (3, 7, 7)))


def test_a_folder_whose_name_ends_in_a_size_is_read_as_it_is(tmp_path):
    write_folder(tmp_path / "photos@4")
    assert load_task(f"folder:{tmp_path}/photos@4").image_shape == (3, 6, 8)
    assert load_task(f"folder:{tmp_path}/photos@4@5").image_shape == (3, 5, 5)
    with pytest.raises(ConfigError, match="0x0 pixels; wanted sides from 1 to 4096"):
        load_task(f"folder:{tmp_path}/photos@0")


def test_what_cannot_be_stretched_is_skipped_and_named(tmp_path):
    write_folder(tmp_path, count=100)
    (tmp_path / "a" / "7.png").write_bytes(b"not an image")
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(tmp_path / "b" / "9.png")
    task = load_task(f"folder:{tmp_path}@4")
    assert [line.split(":")[0] for line in task.skipped] == ["a/7.png", "b/9.png"]
    assert "more than 8 bits" in task.skipped[1]


def test_images_of_16_bits_are_refused_and_not_clipped(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(np.full((6, 8), 300 * number, np.uint16)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(DataError, match="integers from 0 to 900"):
        load_task(f"folder:{tmp_path}")


def test_a_decompression_bomb_is_not_decoded(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(DataError, match="20 of 20 images cannot be read"):
        load_task(f"folder:{tmp_path}")


def test_folder_faults(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no such folder .looked from"):
        load_task(f"folder:{tmp_path}/absent")
    with pytest.raises(DataError, match=r"no such folder .*; a size to stretch images to is written as @64"):
        load_task(f"folder:{tmp_path}@big")
    with pytest.raises(DataError, match="has no sub-folders"):
        load_task(f"folder:{tmp_path}")
    write_folder(tmp_path, classes="a")
    with pytest.raises(DataError, match="one class"):
        load_task(f"folder:{tmp_path}")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b has no images"):
        load_task(f"folder:{tmp_path}")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"pip install 'nas-engine\[vision\]'"):
        load_task(f"folder:{tmp_path}")
