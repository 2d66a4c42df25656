"""Checkpoints: nested training state as safetensors, committed by one rename and verified before use."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nas.errors import ConfigError, shown
from nas.files.atomic import TEMPORARY, storage_errors, write_bytes

_log = logging.getLogger("nas")

_FORMAT = "2"
_NAME = re.compile(r"step-(\d{9,})-([0-9a-f]{16})\.safetensors")


class Checkpoints:
    """The checkpoints of one training run, in a folder of their own with one writer.

    folder: made when the first one is saved.
    keep: how many of the newest stay on disk, at least 1; when one is damaged, the one before it is used.
    every_s: seconds after which a training saves one in the middle of an epoch.

    A file's name carries its step and the SHA-256 of its content, so that the rename is the whole commit and
    a torn, edited or bit-flipped file is known before anything of it is used.
    """

    def __init__(self, folder: Path, *, keep: int = 2, every_s: float = 60.0) -> None:
        self._folder, self._keep, self.every_s = folder, keep, every_s

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Writes `state` (see `pack`) as the checkpoint of `step` and returns its path.

        On failure the earlier checkpoints stay. On success those of the same or a later step are removed too:
        whoever saves an earlier step has gone back to it.

        Raises:
            StorageError: when the file system refuses.
        """
        data = encode(state)
        path = self._folder / f"step-{step:09d}-{_digest(data)}.safetensors"
        with storage_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(f"{TEMPORARY}*"):
                leftover.unlink(missing_ok=True)
            write_bytes(path, data)
            found = self._found()
            earlier = [other for number, other in found if number < step]
            kept = {path, *earlier[len(earlier) - self._keep + 1 :]}
            for _, other in found:
                if other not in kept:
                    other.unlink(missing_ok=True)
        return path

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """The newest undamaged checkpoint as (step, state), on the CPU; None when none is left."""
        for step, path in reversed(self._found()):
            try:
                data = path.read_bytes()
            except OSError as error:
                _log.warning("cannot read checkpoint %s (%s); trying the previous one", path, error.strerror)
                continue
            if path.stem.endswith(_digest(data)):
                return step, decode(data, str(path))
            _log.warning("checkpoint %s is damaged (SHA-256 differs); trying the previous one", path)
        return None

    def _found(self) -> list[tuple[int, Path]]:
        """The steps and paths of all checkpoints, oldest first; of the same step, by age."""
        names = ((_NAME.fullmatch(path.name), path) for path in self._folder.glob("step-*"))
        found = [(int(match[1]), path) for match, path in names if match]
        return sorted(found, key=lambda entry: (entry[0], entry[1].stat().st_mtime_ns))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


# -- a state as bytes ---------------------------------------------------------------------------------


def encode(state: Mapping[str, Any]) -> bytes:
    """A state (see `pack`) as the bytes of a checkpoint."""
    tensors, structure = pack(dict(state))
    return save(tensors, {"checkpoint": _FORMAT, "structure": json.dumps(structure)})


def decode(data: bytes, source: str) -> dict[str, Any]:
    """The state of a checkpoint's bytes, on the CPU. source: where they come from, for messages."""
    tensors, metadata = _parsed(data, source)
    if metadata.get("checkpoint") != _FORMAT:
        raise ConfigError(
            f"{source} is a checkpoint of format {metadata.get('checkpoint')!r}, but this version reads "
            f"{_FORMAT!r}; go on with the version that wrote it, or remove it to start again"
        )
    try:
        state = unpack(tensors, json.loads(metadata.get("structure", "")))
    except (ConfigError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} holds no packed state: {error}") from error
    if not isinstance(state, dict):
        raise ConfigError(f"{source} holds a {type(state).__name__}, but a checkpoint holds a dict")
    return state


def pack(state: object) -> tuple[dict[str, Tensor], object]:
    """`state` as a flat table of tensors and a JSON-able structure that refers to them by name.

    state: tensors, int, float, str, bool and None, nested in dicts (with int or str keys), lists and tuples.
    The tensors come out as contiguous copies on the CPU, one for each place: later training does not change
    them, and tied tensors come back as equal but separate ones. Other kinds of dict come back as plain ones.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: object) -> object:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case Tensor():
                name = str(len(tensors))
                tensors[name] = _copied(value)
                return {"tensor": name}
            case list():
                return [plain(item) for item in value]
            case tuple():
                return {"tuple": plain([*value])}
            case dict():
                return {"dict": [[key, plain(item)] for key, item in value.items()]}
        raise TypeError(f"cannot save {shown(value)}, a {type(value).__name__}; convert it to plain values")

    return tensors, plain(state)


def unpack(tensors: Mapping[str, Tensor], structure: object) -> object:
    """The state that `pack` took apart.

    Raises:
        ConfigError: when something else wrote the structure.
    """

    def whole(value: object) -> object:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case list():
                return [whole(item) for item in value]
            case {"tensor": str(name)}:
                return tensors[name]
            case {"tuple": list(items)}:
                return tuple(whole(item) for item in items)
            case {"dict": list(items)}:
                return {key: whole(item) for key, item in items}
        raise ValueError(f"no packed state has {shown(value)}; was it edited?")

    try:
        return whole(structure)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the packed state is damaged: {type(error).__name__}: {error}") from error


# -- tensors in a file --------------------------------------------------------------------------------


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Replaces the file at `path` by the tensors and their texts as safetensors, whole or not at all."""
    copies = {name: _copied(value) for name, value in tensors.items()}
    # safetensors writes an unreadable header for an empty table of texts.
    write_bytes(path, save(copies, dict(metadata) if metadata else None))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata of a safetensors file."""
    try:
        return _parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _copied(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, [same shape and dtype]."""
    source = tensor.detach()
    return torch.empty(source.shape, dtype=source.dtype, device="cpu").copy_(source)


def _parsed(data: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:  # KeyError: a type torch lacks
        raise ConfigError(f"{source} is not a safetensors file, or is damaged: {error}") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__", {})
