"""Checkpoints: nested training state as safetensors, committed by one rename and verified before use."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save
from torch import Tensor

from nas.errors import ConfigError, StorageError
from nas.files.atomic import TEMPORARY, storage_errors, write_bytes
from nas.text import shown

_log = logging.getLogger("nas")

TRIES = 3
_FORMAT = "1"
_ARRAYS = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
"""Types that numpy has, too."""
_NAME = re.compile(r"step-(\d{9,})-([0-9a-f]{16})\.safetensors")


def pack(state: object) -> tuple[dict[str, Tensor], object]:
    """`state` as a flat table of tensors and a JSON-able structure that refers to them by name.

    state: tensors, int, float, str, bool and None, nested in dicts (with int or str keys), lists and tuples.
    The tensors come out as contiguous copies on the CPU, one for each place: later training does not change
    them, and tied tensors come back as equal but separate ones. Other kinds of dict come back as plain ones.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(state, tensors, "state")


def _pack(value: object, tensors: dict[str, Tensor], where: str) -> object:
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            # JSON has no infinities; finite floats come back bit-exact from their shortest decimal form.
            return float(value) if math.isfinite(value) else {"float": str(float(value))}
        case Tensor():
            name = str(len(tensors))
            tensors[name] = _copied(value)
            return {"tensor": name}
    return _pack_container(value, tensors, where)


def _pack_container(value: object, tensors: dict[str, Tensor], where: str) -> object:
    match value:
        case list():
            return [_pack(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
        case tuple():
            return {"tuple": _pack(list(value), tensors, where)}
        case dict():
            items = value.items()
            return {"dict": [[_key(key, where), _pack(v, tensors, f"{where}[{key!r}]")] for key, v in items]}
    raise TypeError(
        f"cannot save {where}: it is a {type(value).__name__}, but must be a tensor, int, float, str, bool, "
        "None, or a dict, list or tuple of them; convert it first"
    )


def _key(key: object, where: str) -> int | str:
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise TypeError(
            f"cannot save {where}: its key {key!r} is a {type(key).__name__}, but must be int or str"
        )
    return key


def _copied(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, [same shape and dtype]."""
    source = tensor.detach()
    return torch.empty(source.shape, dtype=source.dtype, device="cpu").copy_(source)


def unpack(tensors: Mapping[str, Tensor], structure: object) -> object:
    """The state that `pack` took apart.

    Raises:
        ConfigError: when something else wrote the structure.
    """
    try:
        return _unpack(tensors, structure)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the packed state is damaged: {type(error).__name__}: {error}") from error


def _unpack(tensors: Mapping[str, Tensor], structure: object) -> object:
    match structure:
        case list():
            return [_unpack(tensors, item) for item in structure]
        case {"float": str(text)}:
            return float(text)
        case {"tensor": str(name)}:
            return tensors[name]
        case {"tuple": list(items)}:
            return tuple(_unpack(tensors, item) for item in items)
        case {"dict": list(items)}:
            return {key: _unpack(tensors, item) for key, item in items}
        case dict():
            raise ConfigError(f"no packed state has a table of {shown(sorted(structure))}; was it edited?")
    return structure


def encode(state: Mapping[str, Any]) -> bytes:
    """A state (see `pack`) as the bytes of a checkpoint."""
    tensors, structure = pack(dict(state))
    return _saved(tensors, {"checkpoint": _FORMAT, "structure": json.dumps(structure, allow_nan=False)})


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
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} holds no packed state: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    if not isinstance(state, dict):
        raise ConfigError(f"{source} holds a {type(state).__name__}, but a checkpoint holds a dict")
    return state


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Replaces the file at `path` by the tensors and their texts as safetensors, whole or not at all."""
    copies = {name: _copied(value) for name, value in tensors.items()}
    # safetensors writes an unreadable header for an empty table of texts.
    write_bytes(path, _saved(copies, dict(metadata) if metadata else None))


def _saved(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> bytes:
    """Contiguous tensors on the CPU as safetensors.

    The library takes three times as long for those of torch as for arrays, of which it makes the same bytes.
    """
    if all(tensor.dtype in _ARRAYS for tensor in tensors.values()):
        return save_arrays({name: tensor.numpy() for name, tensor in tensors.items()}, metadata)
    return save(dict(tensors), metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the metadata of a safetensors file."""
    try:
        return _parsed(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _parsed(data: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:  # KeyError: a type torch lacks
        raise ConfigError(f"{source} is not a safetensors file, or is damaged: {error}") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__", {})


class Checkpoints:
    """The checkpoints of one training run, in a folder of their own with one writer.

    folder: made when the first one is saved.
    keep: how many of the newest stay on disk, at least 1; when one is damaged, the one before it is used.

    A file's name carries its step and the SHA-256 of its content, so that the rename is the whole commit and
    a torn, edited or bit-flipped file is known before anything of it is used.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, but must be at least 1")
        self._folder = folder
        self._keep = keep

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
            self._write(path, data)
            self._prune(step, path)
        return path

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """The newest undamaged checkpoint as (step, state), on the CPU; None when none is left."""
        for found in reversed(self._found()):
            try:
                data = found.path.read_bytes()
            except OSError as error:
                _log.warning(
                    "cannot read checkpoint %s (%s); trying the previous one", found.path, error.strerror
                )
                continue
            if _digest(data) == found.digest:
                return found.step, decode(data, str(found.path))
            _log.warning("checkpoint %s is damaged (SHA-256 differs); trying the previous one", found.path)
        return None

    def clear(self) -> None:
        """Removes every checkpoint."""
        self._remove_temporaries()
        for found in self._found():
            found.path.unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        for again in range(TRIES):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_temporaries()
            try:
                write_bytes(path, data)
                return
            except StorageError as error:  # removed under our hands, as in `_found`
                if error.errno != errno.ENOENT or again == TRIES - 1:
                    raise

    def _found(self) -> list[_Found]:
        """All checkpoints, oldest first."""
        found = []
        for path in self._folder.glob("step-*"):
            # A worker that lost its trial without knowing may still tidy up where its successor reads.
            with suppress(FileNotFoundError):
                if match := _NAME.fullmatch(path.name):
                    found.append(_Found(int(match[1]), path.stat().st_mtime_ns, match[2], path))
        return sorted(found)

    def _prune(self, step: int, newest: Path) -> None:
        found = self._found()
        earlier = [entry.path for entry in found if entry.step < step]
        kept = {newest, *earlier[len(earlier) - self._keep + 1 :]}
        for entry in found:
            if entry.path not in kept:
                entry.path.unlink(missing_ok=True)

    def _remove_temporaries(self) -> None:
        for path in self._folder.glob(f"{TEMPORARY}*"):
            path.unlink(missing_ok=True)


class _Found(NamedTuple):
    """One checkpoint on disk; sorts by step, then by age."""

    step: int
    mtime_ns: int
    digest: str
    path: Path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
