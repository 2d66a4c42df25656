"""Compressed files from outside: nothing is unpickled, and no more is unpacked than was allowed.

A few kilobytes can unpack to gigabytes, and an array's header can ask for more memory than there is.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from lzma import LZMAError
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from nas.text import printable

if TYPE_CHECKING:  # servers read arrays and have no torch, which nas.data.arrays imports
    from nas.data.arrays import Array

_DAMAGE = (
    *(OSError, EOFError, LZMAError, MemoryError, NotImplementedError, OverflowError, RecursionError),
    *(RuntimeError, SyntaxError, TokenError, TypeError, ValueError, zipfile.BadZipFile, zlib.error),
)
"""What the readers of the standard library and of numpy raise on damaged files."""


def half_of_memory() -> int:
    """Bytes that unpacked data may take."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def load_arrays(
    path: Path, names: Sequence[str], *, max_bytes: int | None = None
) -> tuple[dict[str, Array], list[str]]:
    """The arrays of these names that an .npz file holds, and the names of all that it holds.

    max_bytes: of the unpacked arrays together; half of the machine's memory unless given.

    Raises:
        ValueError: in words, for anything that is no such file, is damaged, or would unpack to more.
    """
    limit = half_of_memory() if max_bytes is None else max_bytes
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy and Python about a header that only looks like one
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = {name: members[name] for name in names if name in members}
            size = sum(info.file_size for info in wanted.values())
            if size > limit:
                raise ValueError(f"its arrays unpack to {size:,} bytes, but at most {limit:,} are allowed")
            return {name: _array(archive, info) for name, info in wanted.items()}, list(members)
    except FileNotFoundError as error:
        raise ValueError(f"no such file (looked from {Path.cwd()})") from error
    except _DAMAGE as error:
        raise ValueError(_words(error)) from error


NPY = np.lib.format.MAGIC_PREFIX
"""What an .npy file begins with."""


def array_of(data: bytes) -> Array:
    """The array in the bytes of an .npy file.

    Raises:
        ValueError: in words, for anything that is no such file or is damaged.
    """
    try:  # without other filters of warnings, which threads share
        _check_header(io.BytesIO(data), "the file", len(data))
        array: Array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except _DAMAGE as error:
        raise ValueError(_words(error)) from error
    return array


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as member:
        _check_header(member, info.filename, info.file_size)
    with archive.open(info) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"{info.filename} goes on behind its array")
    return array


def _check_header(member: IO[bytes], name: str, size: int) -> None:
    """Refuses a header that promises another number of bytes than follow it: numpy would allocate them."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(member)
    if version not in readers:
        raise ValueError(f"{name} is of version {version} of the format")
    header: tuple[tuple[int, ...], bool, np.dtype[Any]] = readers[version](member)
    shape, _, dtype = header
    count = math.prod(map(int, shape))
    if dtype.hasobject:
        raise ValueError(f"Object arrays cannot be loaded: {name} would have to be unpickled")
    promised, there = count * dtype.itemsize, size - member.tell()
    if min(shape, default=0) < 0 or promised != there or (count and not dtype.itemsize):
        raise ValueError(f"{name} holds {there} bytes, which are not those of its shape {shape}")


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """A file's content, unpacked where its name ends in .gz.

    Raises:
        ValueError: in words, when it cannot be read or has more than `max_bytes`.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except _DAMAGE as error:
        raise ValueError(_words(error)) from error
    if len(data) > max_bytes:
        raise ValueError(f"it has more than the {max_bytes:,} bytes that are allowed")
    return data


def _words(error: BaseException) -> str:
    """What went wrong, in one short line."""
    return printable(str(error).replace("\n", " ") or type(error).__name__, limit=200)
