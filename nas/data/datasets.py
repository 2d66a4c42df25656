"""Readers of image data: each turns what lies on disk into a `Source`; nothing is ever downloaded."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from nas.data.arrays import Array, Source, channels_last
from nas.data.imagefolder import read_folder
from nas.data.safe_npz import load_arrays, read_bounded
from nas.errors import ConfigError, DataError, unknown
from nas.files.paths import exists, is_file
from nas.text import printable

_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_FASHION_SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_IDX_UNSIGNED_BYTE = 8
_MAX_IDX = 64 << 20
"""Bytes of one file, unpacked; the largest of Fashion-MNIST has 47 million."""
_CIFAR_SHAPE = (3, 32, 32)
_NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_SIZED = re.compile(r"(.+)@([0-9]{1,9})(?:x([0-9]{1,9}))?")
_LARGEST_SIDE = 4096
_HOW_TO_SAVE = "write it with np.savez(path, x_train=..., y_train=...) from arrays of numbers or strings"


def read(name: str, *, lenient: bool = False) -> Source:
    """Reads the data called `name`: digits, fashion_mnist, cifar10, cifar100, npz:PATH or folder:PATH.

    `folder:PATH@64` and `folder:PATH@64x48` (width x height) stretch all images to one size.

    lenient: whether any number of images of a folder may be unusable, see `read_folder`.
    """
    kind, colon, path = name.partition(":")
    if colon and kind in _BY_PATH:
        if not path:
            raise ConfigError(f"task {name!r} names no path; write {kind}:PATH")
        return _folder(path, lenient=lenient) if kind == "folder" else _BY_PATH[kind](_expanded(path))
    if name not in _BY_NAME:
        if exists(_expanded(name)):
            kind = "npz" if is_file(_expanded(name)) else "folder"
            raise ConfigError(
                f"no task {printable(name)!r}, but there is such a path; write {kind}:{printable(name)}"
            )
        raise ConfigError(unknown("task", name, [*_BY_NAME, *(f"{kind}:PATH" for kind in _BY_PATH)]))
    return _BY_NAME[name]()


def _folder(path: str, *, lenient: bool) -> Source:
    """A folder of images; a size behind its name counts where no folder has that whole name."""
    match, place = _SIZED.fullmatch(path), _expanded(path)
    if match is None or exists(place):
        return read_folder(place, lenient=lenient)
    width, height = int(match[2]), int(match[3] or match[2])
    if not 1 <= min(width, height) <= max(width, height) <= _LARGEST_SIDE:
        raise ConfigError(
            f"task 'folder:{path}': images of {width}x{height} pixels; wanted sides from 1 to {_LARGEST_SIDE}"
        )
    return read_folder(_expanded(match[1]), size=(width, height), lenient=lenient)


def _expanded(path: str) -> Path:
    """The path with the home folder in place of `~`."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"task path {path!r} begins with the home folder of a user who is unknown"
        ) from error


def digits() -> Source:
    """The 1,797 handwritten digits of 8x8 that come with scikit-learn; they have no official test part."""
    pixels, labels = _digits()
    pixels = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Source(pixels, labels, classes=tuple("0123456789"))


def _digits() -> tuple[Array, Array]:
    """Pixels `[1797, 64]` in [0, 16] and labels, from scikit-learn's file: its import takes most of a second.

    Every worker would wait for that. Where the file lies elsewhere, scikit-learn is asked for it.
    """
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        if is_file(file := Path(folder, "datasets", "data", "digits.csv.gz")):
            rows = np.loadtxt(file, delimiter=",")
            return rows[:, :-1], rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels


def fashion_mnist() -> Source:
    """Fashion-MNIST (Xiao et al. 2017), 60,000 + 10,000 images of 28x28, from its IDX files."""
    places = [place for root in _data_roots() for place in (root, root / "fashion-mnist")]
    places.append(_FASHION_SYSTEM_FOLDER)
    for place in places:
        files = [path for name in _FASHION_FILES if (path := _plain_or_gzipped(place / name))]
        if len(files) == len(_FASHION_FILES):
            x_train, y_train, x_test, y_test = map(read_idx, files)
            return Source(x_train, y_train, x_test, y_test, classes=_FASHION_CLASSES)
    raise DataError(
        f"fashion_mnist: no folder holds all of {', '.join(_FASHION_FILES)} (each plain or .gz); "
        f"looked in {', '.join(map(str, places))}. Get the four files from "
        "https://github.com/zalandoresearch/fashion-mnist on a connected machine and put them into one of "
        "these folders, or set NAS_DATA to theirs"
    )


def cifar10() -> Source:
    """CIFAR-10 (Krizhevsky 2009), 50,000 + 10,000 images of 3x32x32, from its binary version."""
    place = _data_folder("cifar-10-batches-bin")
    if place is None:
        return _from_torchvision("CIFAR10", folder="cifar-10-batches-bin", archive="cifar-10-binary.tar.gz")
    train = [_read_cifar(place / f"data_batch_{batch}.bin", label_bytes=1) for batch in range(1, 6)]
    x_train, y_train = (np.concatenate(part) for part in zip(*train, strict=True))
    test = _read_cifar(place / "test_batch.bin", label_bytes=1)
    return Source(x_train, y_train, *test, classes=_lines(place / "batches.meta.txt"), flip=True)


def cifar100() -> Source:
    """CIFAR-100 (Krizhevsky 2009) with its 100 fine labels, from its binary version."""
    place = _data_folder("cifar-100-binary")
    if place is None:
        return _from_torchvision("CIFAR100", folder="cifar-100-binary", archive="cifar-100-binary.tar.gz")
    train = _read_cifar(place / "train.bin", label_bytes=2)
    test = _read_cifar(place / "test.bin", label_bytes=2)
    return Source(*train, *test, classes=_lines(place / "fine_label_names.txt"), flip=True)


def npz(path: Path) -> Source:
    """Arrays x_train and y_train, and x_test and y_test if there, of an .npz file; never unpickles."""
    if not is_file(path):
        raise DataError(f"npz:{path}: no such file (looked from {Path.cwd()}); {_HOW_TO_SAVE}")
    if not zipfile.is_zipfile(path):
        raise DataError(f"npz:{path} is not an .npz archive, or not a whole one; {_HOW_TO_SAVE}")
    try:
        arrays, names = load_arrays(path, _NPZ_ARRAYS)
    except ValueError as error:
        raise DataError(f"npz:{path} cannot be read ({error}); {_HOW_TO_SAVE}") from error
    x_train, y_train, x_test, y_test = map(arrays.get, _NPZ_ARRAYS)
    if x_train is None or y_train is None:
        held = printable(", ".join(names) or "nothing", limit=200)
        raise DataError(f"npz:{path} holds {held}, but not both x_train and y_train; {_HOW_TO_SAVE}")
    for name in ("x_train", "x_test"):
        if name in arrays:
            channels_last(arrays[name], who=f"npz:{path}: {name}")
    return Source(x_train, y_train, x_test, y_test)


def read_idx(path: Path) -> Array:
    """An array of unsigned bytes from an IDX file, gzipped when its name ends in .gz.

    The format: two zero bytes, the type code, the number of axes, each size as a big-endian uint32, the data.
    """
    try:
        data = read_bounded(path, max_bytes=_MAX_IDX)
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}); get this file again") from error
    axes = data[3] if len(data) > 3 else 0
    header = 4 + 4 * axes
    if data[:3] != bytes((0, 0, _IDX_UNSIGNED_BYTE)) or not axes or len(data) < header:
        raise DataError(
            f"{path} begins with {data[:4].hex() or 'nothing'}, but an IDX file of bytes begins with 000008 "
            "and its number of axes; get this file again"
        )
    shape = tuple(map(int, np.frombuffer(data, ">u4", count=axes, offset=4)))
    if len(data) - header != math.prod(shape):
        raise DataError(
            f"{path} holds {len(data) - header} bytes of data, but its header says {math.prod(shape)} "
            f"({'x'.join(map(str, shape))}); get this file again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _read_cifar(path: Path, *, label_bytes: int) -> tuple[Array, Array]:
    """Images [N, 32, 32, 3] and the last of the `label_bytes` labels before each image."""
    record = label_bytes + math.prod(_CIFAR_SHAPE)
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); unpack the archive again") from error
    if not len(data) or len(data) % record:
        raise DataError(
            f"{path} has {len(data)} bytes, but must have a whole number of records of {record} bytes; "
            "unpack the archive again"
        )
    records = data.reshape(-1, record)
    images = records[:, label_bytes:].reshape(-1, *_CIFAR_SHAPE)
    return images.transpose(0, 2, 3, 1), records[:, label_bytes - 1]


def _from_torchvision(kind: Literal["CIFAR10", "CIFAR100"], *, folder: str, archive: str) -> Source:
    """The same data by torchvision, from a copy that it has downloaded before."""
    places = _data_roots()
    advice = (
        f"{kind.lower()}: no folder {folder} in {', '.join(map(str, places))}; get {archive} from "
        "https://www.cs.toronto.edu/~kriz/cifar.html on a connected machine and unpack it in one of these "
        "folders, or set NAS_DATA to the folder where it is"
    )
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(advice) from error
    load = datasets.CIFAR10 if kind == "CIFAR10" else datasets.CIFAR100
    for place in places:
        try:
            train, test = (load(str(place), train=part, download=False) for part in (True, False))
        except RuntimeError:  # torchvision's way to say that the data is not in this folder
            continue
        labels = np.asarray(train.targets), np.asarray(test.targets)
        return Source(train.data, labels[0], test.data, labels[1], classes=tuple(train.classes), flip=True)
    raise DataError(advice)


def _data_roots() -> list[Path]:
    """Where data is looked for, in order: $NAS_DATA, then ~/.cache/nas."""
    chosen = os.environ.get("NAS_DATA")
    return [*([Path(chosen).expanduser()] if chosen else []), Path("~/.cache/nas").expanduser()]


def _data_folder(name: str) -> Path | None:
    return next((root / name for root in _data_roots() if (root / name).is_dir()), None)


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); unpack the archive again") from error


_BY_NAME: dict[str, Callable[[], Source]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
}
_BY_PATH: dict[str, Callable[[Path], Source]] = {"npz": npz, "folder": read_folder}
