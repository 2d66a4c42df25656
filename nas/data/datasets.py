"""Readers of image data: each turns what lies on disk, or in a data set, into a `Source`; none downloads."""

from __future__ import annotations

import math
import os
import re
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from nas.data.arrays import Array, Source, as_numpy, channels_last
from nas.data.decode import DEEP, GREY, SUFFIXES, fitted, load_arrays, open_image, pil_pixels, read_bounded
from nas.errors import ConfigError, DataError, foreign_code, printable, unknown
from nas.files.folder import exists, is_file, is_folder

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
_HOW_TO_SAVE = "write it with np.savez(path, x_train=..., y_train=...) from arrays of numbers or strings"
_SIZED = re.compile(r"(.+)@([0-9]{1,9})(?:x([0-9]{1,9}))?")
_LARGEST_SIDE = 4096
_LARGEST_CORRUPT_SHARE = 0.01


def read(name: str, *, lenient: bool = False) -> Source:
    """Reads the data called `name`, one of those that `nas.data.loading.load_task` names.

    lenient: whether any number of images of a folder may be unusable, see `read_folder`.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]()
    kind, _, path = name.partition(":")
    try:
        if kind == "npz" and path:
            return npz(Path(path).expanduser())
        if kind == "folder" and path:
            return _sized_folder(path, lenient=lenient)
    except RuntimeError as error:
        raise ConfigError(f"task {name!r}: {error}") from error  # `~` of nobody
    raise ConfigError(unknown("task", name, [*_BY_NAME, "npz:PATH", "folder:PATH"]))


def _sized_folder(path: str, *, lenient: bool) -> Source:
    """A folder of images; a size behind its name counts where no folder has that whole name."""
    match, place = _SIZED.fullmatch(path), Path(path).expanduser()
    if match is None or exists(place):
        return read_folder(place, lenient=lenient)
    width, height = int(match[2]), int(match[3] or match[2])
    if not 1 <= min(width, height) <= max(width, height) <= _LARGEST_SIDE:
        raise ConfigError(
            f"task 'folder:{path}': images of {width}x{height} pixels; wanted sides from 1 to {_LARGEST_SIDE}"
        )
    return read_folder(Path(match[1]).expanduser(), size=(width, height), lenient=lenient)


def _data_roots() -> list[Path]:
    """Where data is looked for, in order: $NAS_DATA, then ~/.cache/nas."""
    chosen = os.environ.get("NAS_DATA")
    return [*([Path(chosen).expanduser()] if chosen else []), Path("~/.cache/nas").expanduser()]


def digits() -> Source:
    """The 1,797 handwritten digits of 8x8 that come with scikit-learn; they have no official test part."""
    # Not by sklearn.datasets, whose import takes most of a second in each process.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")
    pixels = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Source(pixels, rows[:, -1].astype(np.int64), classes=tuple("0123456789"))


def fashion_mnist() -> Source:
    """Fashion-MNIST (Xiao et al. 2017), 60,000 + 10,000 images of 28x28, from its IDX files."""
    places = [place for root in _data_roots() for place in (root, root / "fashion-mnist")]
    places.append(_FASHION_SYSTEM_FOLDER)
    for place in places:
        both = [(place / name, place / f"{name}.gz") for name in _FASHION_FILES]
        files = [file for pair in both if (file := next(filter(is_file, pair), None))]
        if len(files) == len(_FASHION_FILES):
            x_train, y_train, x_test, y_test = map(read_idx, files)
            return Source(x_train, y_train, x_test, y_test, classes=_FASHION_CLASSES)
    raise DataError(
        f"fashion_mnist: no folder holds all of {', '.join(_FASHION_FILES)} (each plain or .gz); "
        f"looked in {', '.join(map(str, places))}. Get the four files from "
        "https://github.com/zalandoresearch/fashion-mnist on a connected machine and put them into one of "
        "these folders, or set NAS_DATA to theirs"
    )


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
    sound = data[:3] == bytes((0, 0, _IDX_UNSIGNED_BYTE)) and axes and len(data) >= header
    shape = tuple(map(int, np.frombuffer(data, ">u4", count=axes, offset=4))) if sound else ()
    if not sound or len(data) - header != math.prod(shape):
        raise DataError(
            f"{path} is no whole IDX file of bytes: it begins with {data[:4].hex() or 'nothing'} and has "
            f"{len(data)} bytes, whose shape would be {shape}; get this file again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def cifar10() -> Source:
    """CIFAR-10 (Krizhevsky 2009), 50,000 + 10,000 images of 3x32x32, from its binary version."""
    batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return _cifar("cifar-10-batches-bin", batches, "test_batch.bin", "batches.meta.txt", label_bytes=1)


def cifar100() -> Source:
    """CIFAR-100 (Krizhevsky 2009) with its 100 fine labels, from its binary version."""
    return _cifar("cifar-100-binary", ["train.bin"], "test.bin", "fine_label_names.txt", label_bytes=2)


def _cifar(folder: str, train: Sequence[str], test: str, names: str, *, label_bytes: int) -> Source:
    """CIFAR with its images in the files `train` and `test`, its class names in `names`.

    label_bytes: those before each image; the last one counts.
    """
    folders = [root / folder for root in _data_roots()]
    place = next(filter(is_folder, folders), None)
    if place is None:
        name = "-".join(folder.split("-")[:2])
        raise DataError(
            f"{name.replace('-', '')}: no folder {' or '.join(map(str, folders))}; get {name}-binary.tar.gz "
            "from https://www.cs.toronto.edu/~kriz/cifar.html on a connected machine and unpack it there, or "
            "set NAS_DATA to the folder where it is; for a copy of torchvision's, use nas.task_from_datasets"
        )
    record, parts = label_bytes + math.prod(_CIFAR_SHAPE), []
    try:
        classes = tuple((place / names).read_text(encoding="utf-8").split())
        for file in (*train, test):
            data = np.fromfile(place / file, np.uint8)
            if not len(data) or len(data) % record:
                raise ValueError(f"{file} has {len(data)} bytes, which are no records of {record} bytes")
            parts.append(data.reshape(-1, record))
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read ({error}); unpack the archive again") from error
    images = [p[:, label_bytes:].reshape(-1, *_CIFAR_SHAPE).transpose(0, 2, 3, 1) for p in parts]
    labels = [p[:, label_bytes - 1] for p in parts]
    x_train, y_train = np.concatenate(images[:-1]), np.concatenate(labels[:-1])
    return Source(x_train, y_train, images[-1], labels[-1], classes=classes, flip=True)


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


def read_folder(root: Path, *, size: tuple[int, int] | None = None, lenient: bool = False) -> Source:
    """Reads PATH/CLASS/IMAGE, or PATH/train/CLASS/IMAGE and PATH/test/CLASS/IMAGE, with Pillow.

    Up to 1 % of the images may be corrupt: they are left out and listed in `Source.skipped`.

    size: (width, height) that all images are stretched to, turned upright as their EXIF data say, and made
        colour where any of them is; without it all must have one size and colour mode.
    lenient: leave out and list any number of them, and all images that differ from most in size or channels.
    """
    if not is_folder(root):
        sized = "; a size to stretch images to is written as @64 or @64x48" if "@" in root.name else ""
        raise DataError(f"folder:{root}: no such folder (looked from {Path.cwd()}){sized}")
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"folder:{root} needs Pillow to read images; install it with: pip install 'nas-engine[vision]'"
        ) from error
    places = [place for place in (root / "train", root / "test") if place.is_dir()]
    if not (root / "train").is_dir():  # these are classes of their own
        places = [root]
    into = None if size is None else (_channels(root), size[1], size[0])
    found, skipped = list[_Image](), list[str]()
    for part, place in enumerate(places):
        for folder in _class_folders(place):
            for file in _images(folder):
                name = file.relative_to(root).as_posix()
                try:
                    found.append(_Image(part, name, folder.name, _pixels_of(file, into)))
                except (OSError, ValueError) as error:
                    skipped.append(f"{name}: {error}")
    if not found or (not lenient and len(skipped) > _LARGEST_CORRUPT_SHARE * (len(found) + len(skipped))):
        raise DataError(
            f"folder:{root}: {len(skipped)} of {len(found) + len(skipped)} images cannot be read, "
            f"but at most {_LARGEST_CORRUPT_SHARE:.0%} may be ({'; '.join(skipped[:3])}); "
            "repair or remove them"
        )
    found = _of_one_shape(root, found, skipped, lenient=lenient)
    parts = [[image for image in found if image.part == part] for part in range(len(places))]
    arrays = [(np.array([i.pixels for i in own]), np.array([i.label for i in own])) for own in parts]
    (x_train, y_train), (x_test, y_test) = arrays[0], (arrays[1] if len(arrays) > 1 else (None, None))
    return Source(
        x_train,
        y_train,
        x_test,
        y_test,
        classes=tuple(folder.name for folder in _class_folders(places[0])),
        skipped=tuple(sorted(skipped)),
        files=tuple(image.file for image in found),
    )


class _Image(NamedTuple):
    """An image of a folder. part: 0 for training, 1 for test. file: relative to the whole folder."""

    part: int
    file: str
    label: str
    pixels: Array


def _pixels_of(file: Path, into: tuple[int, int, int] | None) -> Array:
    if not file.is_file():  # a pipe would never end
        raise ValueError("not a regular file")
    if into is not None:  # as `nas predict` does for a network of this shape
        pixels = fitted(file.read_bytes(), into)
        return pixels[0] if into[0] == 1 else pixels.transpose(1, 2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # odd metadata beside good pixels
        with open_image(file) as image:
            return pil_pixels(image)


def _channels(root: Path) -> int:
    """1 where no image has colours, else 3; only their heads are read."""
    for file in _images(root):
        with suppress(ValueError), open_image(file) as image:
            if image.mode not in GREY | DEEP:
                return 3
    return 1


def _of_one_shape(root: Path, found: list[_Image], skipped: list[str], *, lenient: bool) -> list[_Image]:
    """The images that have the size and channels of most, where they need not all have."""
    usual = Counter(image.pixels.shape for image in found).most_common(1)[0][0]
    right = [image for image in found if image.pixels.shape == usual]
    odd = [(image.file, _size(image.pixels.shape)) for image in found if image.pixels.shape != usual]
    if odd and not lenient:
        raise DataError(
            f"folder:{root}: images differ in size or channels: {right[0].file} is {_size(usual)}, "
            f"{odd[0][0]} is {odd[0][1]}; bring all to one size and colour mode, or stretch them as "
            f"folder:{root}@32"
        )
    skipped += [f"{file}: it is {size}, but most are {_size(usual)}" for file, size in odd]
    return right


def _images(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(
            f"folder:{folder} has no images ({', '.join(sorted(SUFFIXES))}); add some or remove the folder"
        )
    return found


def _class_folders(path: Path) -> list[Path]:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise DataError(f"folder:{path} has no sub-folders; put the images of each class into one of its own")
    return folders


def _size(shape: tuple[int, ...]) -> str:
    """The size as people say it: width x height, then the channels."""
    height, width, *channels = shape
    return f"{width}x{height} {'colour' if channels else 'grey'}"


@runtime_checkable
class MapDataset(Protocol):
    """A map-style data set of (image, label), read by index from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


def collect(dataset: MapDataset, *, who: str) -> tuple[Array, Array]:
    """All images [N, H, W] or [N, H, W, C] and labels [N], read once in order."""
    if not isinstance(dataset, MapDataset):
        raise DataError(
            f"{who} is a {type(dataset).__name__}, wanted a data set with a length that is read by index; of "
            "a DataLoader give its `dataset`, of what can only be gone through, `list(...)` of it"
        )
    images: list[Array] = []
    labels: list[object] = []
    for index in range(len(dataset)):
        with foreign_code(f"{who}: item {index} cannot be read", DataError):
            item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(f"{who}: item {index} is a {type(item).__name__}, but must be (image, label)")
        pixels = _image_array(item[0], who=f"{who}: item {index}")
        if images and pixels.shape != images[0].shape:
            raise DataError(
                f"{who}: images differ in size or channels: item 0 is {images[0].shape}, item {index} is "
                f"{pixels.shape}; bring all to one [H, W] or [H, W, C]"
            )
        images.append(pixels)
        labels.append(as_numpy(item[1]) if isinstance(item[1], Tensor) else item[1])
    if not images:
        raise DataError(f"{who} is empty; give at least two images of each class")
    return np.array(images), np.array(labels)


def _image_array(image: object, *, who: str) -> Array:
    if isinstance(image, Tensor):
        return as_numpy(image.permute(1, 2, 0) if image.ndim == 3 else image)
    if isinstance(image, np.ndarray):
        channels_last(image[None], who=who)
        return image
    pillow = sys.modules.get("PIL.Image")  # whoever made a Pillow image has loaded Pillow
    if pillow is not None and isinstance(image, pillow.Image):
        return pil_pixels(image)
    raise DataError(
        f"{who} has a {type(image).__name__} as image, but must have a Pillow image, an array or a tensor"
    )


_BY_NAME: dict[str, Callable[[], Source]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
}
