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
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save
from torch import Tensor

from nas.errors import ConfigError, shown
from nas.files.atomic import TEMPORARY, storage_errors, write_bytes

_log = logging.getLogger("nas")

_FORMAT = "2"
_ARRAYS = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
"""Types that numpy has, too."""
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
        if keep < 1:
            raise ValueError(f"keep is {keep}, but must be at least 1")
        self._folder, self._keep, self.every_s = folder, keep, every_s

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Writes `state` (see `pack`) as the checkpoint of `step` and returns its path.

        On failure the earlier checkpoints stay. On success those of the same or a later step are removed too:
        whoever saves an earlier step has gone back to it.

        Raises:
            StorageError: when the file system refuses.
        """
        if step < 0:
            raise ValueError(f"step is {step}, but must be at least 0")
        data = encode(state)
        path = self._folder / f"step-{step:09d}-{_digest(data)}.safetensors"
        with storage_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_temporaries()
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

    def clear(self) -> None:
        """Removes every checkpoint."""
        self._remove_temporaries()
        for _, path in self._found():
            path.unlink(missing_ok=True)

    def _found(self) -> list[tuple[int, Path]]:
        """The steps and paths of all checkpoints, oldest first; of the same step, by age."""
        names = ((_NAME.fullmatch(path.name), path) for path in self._folder.glob("step-*"))
        found = [(int(match[1]), path) for match, path in names if match]
        return sorted(found, key=lambda entry: (entry[0], entry[1].stat().st_mtime_ns))

    def _remove_temporaries(self) -> None:
        for path in self._folder.glob(f"{TEMPORARY}*"):
            path.unlink(missing_ok=True)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


# -- a state as bytes ---------------------------------------------------------------------------------


def encode(state: Mapping[str, Any]) -> bytes:
    """A state (see `pack`) as the bytes of a checkpoint."""
    tensors, structure = pack(dict(state))
    return _saved(tensors, {"checkpoint": _FORMAT, "structure": json.dumps(structure)})


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

    def plain(value: object, where: str) -> object:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case Tensor():
                name = str(len(tensors))
                tensors[name] = _copied(value)
                return {"tensor": name}
            case list():
                return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
            case tuple():
                return {"tuple": plain(list(value), where)}
            case dict():
                for key in value:
                    if isinstance(key, bool) or not isinstance(key, int | str):
                        raise TypeError(
                            f"cannot save {where}: its key {key!r} is a {type(key).__name__}, but must "
                            "be int or str"
                        )
                return {"dict": [[key, plain(item, f"{where}[{key!r}]")] for key, item in value.items()]}
        raise TypeError(
            f"cannot save {where}: it is a {type(value).__name__}, but must be a tensor, int, float, str, "
            "bool, None, or a dict, list or tuple of them; convert it first"
        )

    return tensors, plain(state, "state")


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
    write_bytes(path, _saved(copies, dict(metadata) if metadata else None))


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


def _saved(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> bytes:
    """Contiguous tensors on the CPU as safetensors.

    The library takes three times as long for those of torch as for arrays, of which it makes the same bytes.
    """
    if all(tensor.dtype in _ARRAYS for tensor in tensors.values()):
        return save_arrays({name: tensor.numpy() for name, tensor in tensors.items()}, metadata)
    return save(dict(tensors), metadata)


def _parsed(data: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:  # KeyError: a type torch lacks
        raise ConfigError(f"{source} is not a safetensors file, or is damaged: {error}") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__", {})
