"""`nas predict`: the classes of images from files, by the trained network of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from nas.data.imagefolder import SUFFIXES
from nas.data.safe_npz import NPY, load_arrays, read_bounded
from nas.errors import ConfigError, DataError
from nas.export.formats import Pixels
from nas.export.serving.session import Answer, Served, answers, array_pixels, numbered, pixels_of
from nas.export.serving.session import Pixels as Images
from nas.files.paths import is_file, is_folder
from nas.results.result import load_result
from nas.user_code import user_errors

BATCH = 256
MOST_BYTES = 256 << 20
"""Of one image file or array."""
ARRAYS = ("images", "x", "x_test")


def predicted(
    folder: Path,
    served: Served,
    files: Sequence[str],
    npz: Path | None = None,
    *,
    top: int,
    space: str | None = None,
) -> tuple[list[Answer], list[str]]:
    """Answers for all images that can be read, and what is wrong with the others.

    files: image files, .npy arrays, or folders of them, see `_files_of`. npz: a file with one of `ARRAYS`.
    space: must be given where the run used a user's own space.
    """
    result = load_result(folder, space=space)
    model = Pixels(result.network, result.inputs)
    found, troubles = list[Answer](), list[str]()

    def images() -> Iterator[tuple[str, Images | DataError]]:
        for given in files:
            for name in _files_of(given):
                if isinstance(name, DataError):
                    yield given, name
                else:
                    yield name, _read(name, served)
        if npz is not None:
            yield str(npz), _unpacked(npz, served)

    for group in _groups(images(), troubles):
        together = [pixels for _, pixels in group]
        logits = _logits(model, np.concatenate(together) if len(group) > 1 else together[0])
        ends = np.cumsum([len(pixels) for pixels in together])
        for (name, pixels), rows in zip(group, np.split(logits, ends[:-1]), strict=True):
            try:
                found += answers(numbered(name, len(pixels)), rows, served.classes, top=top)
            except DataError as error:
                troubles.append(str(error))
    return found, troubles


def _groups(
    images: Iterator[tuple[str, Images | DataError]], troubles: list[str]
) -> Iterator[list[tuple[str, Images]]]:
    """Files whose images fill a batch together; what is wrong with the others is put into `troubles`."""
    group, size = list[tuple[str, Images]](), 0
    for name, pixels in images:
        if isinstance(pixels, DataError):
            troubles.append(str(pixels))
            continue
        group.append((name, pixels))
        size += len(pixels)
        if size >= BATCH:
            yield group
            group, size = [], 0
    if group:
        yield group


def _files_of(given: str) -> list[str | DataError]:
    """The file itself, or the images and .npy arrays in a folder and those within, in sorted order.

    Names that begin with a dot are passed over; what cannot be looked into is named.
    """
    folder = Path(given)
    if not is_folder(folder):
        return [given]
    refused: list[str | DataError] = []

    def refuse(error: OSError) -> None:
        refused.append(DataError(f"{error.filename} cannot be read: {error.strerror}"))

    found = []
    for place, inside, names in os.walk(folder, onerror=refuse):
        inside[:] = (name for name in inside if not name.startswith("."))
        found += [Path(place, name) for name in names if not name.startswith(".")]
    images = sorted(path for path in found if path.suffix.lower() in SUFFIXES | {".npy"})
    if not images and not refused:
        wanted = ", ".join(sorted(SUFFIXES | {".npy"}))
        return [DataError(f"{given} has no images in it; wanted files that end in {wanted}")]
    return [*refused, *map(str, images)]


def _logits(model: Pixels, pixels: Images) -> Images:
    with torch.no_grad(), user_errors():
        logits = torch.cat([model(part) for part in torch.split(torch.from_numpy(pixels), BATCH)])
    numbers: Images = logits.numpy()
    return numbers


def _read(name: str, served: Served) -> Images | DataError:
    if not is_file(Path(name)):
        return DataError(f"{name} is no file; wanted an image or an .npy array")
    try:
        data = read_bounded(Path(name), max_bytes=MOST_BYTES)
    except ValueError as error:
        return DataError(f"{name} cannot be read: {error}")
    if served.takes_files and not data.startswith(NPY) and find_spec("PIL") is None:
        raise ConfigError("predict: image files need Pillow; pip install 'nas-engine[vision]', or give --npz")
    try:
        return pixels_of(name, data, served)
    except DataError as error:
        return error


def _unpacked(path: Path, served: Served) -> Images | DataError:
    try:
        arrays, names = load_arrays(path, ARRAYS)
    except ValueError as error:
        return DataError(f"{path} cannot be read: {error}; write it with np.savez(path, images=...)")
    if not arrays:
        return DataError(
            f"{path} holds {', '.join(names) or 'nothing'}, wanted an array {' or '.join(ARRAYS)}"
        )
    name = next(name for name in ARRAYS if name in arrays)
    try:
        return array_pixels(f"{path} ({name})", arrays[name], served)
    except DataError as error:
        return error
