"""Files that are whole or not at all on the disk; strict JSON, and TOML, in them."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from nas.errors import ConfigError, StorageError, shown

TEMPORARY = ".tmp-"
"""How the name of a file that is still being written begins."""
MAX_DEPTH = 100
"""Of lists and tables in each other; those of our files are 6 deep."""
MAX_BYTES = 1 << 20
"""Of a TOML file."""
_DOT = re.compile(r"""[\w"'-][ \t]*\.[ \t]*(?=[\w"'-])""")
"""A dot between two parts of a key; not those of a row in a comment, nor of `../`."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with its suffix, that takes its place when the block succeeds.

    A reader sees the old file or the whole new one, also after a kill or a power loss. When the block raises
    (a full disk, say), the old file stays and the temporary is removed.

    Raises:
        StorageError: when the file system refuses.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
    with storage_errors(path):
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Makes a file, or the names in a folder, last through a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot do so for folders.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces the file at `path` by `data`, whole or not at all.

    Raises:
        StorageError: when the file system refuses.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replaces the file at `path` by `text` in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Replaces the file at `path` by `value` as strict JSON: NaN and infinities are refused."""
    try:
        text = json.dumps(value, allow_nan=False, indent=2)
    except ValueError as error:
        raise ValueError(f"cannot write {path}: {error}") from error
    write_text(path, text + "\n")


def remove_unfinished(folder: Path) -> None:
    """Removes the temporary files that killed writers left in a folder in which nobody else writes."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # not ours to remove
            path.unlink()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's temporary directory, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="nas-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns what the file system refuses while `path` is written into a StorageError that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        mount = next((place for place in path.absolute().parents if place.is_mount()), Path("/"))
        advice = {
            errno.ENOSPC: f"free some space on {mount} (see df -h, and df -i for inodes)",
            errno.EDQUOT: f"remove something of yours on {mount}, or ask for a larger quota",
            errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
            errno.EROFS: f"make {mount} writable",
            errno.EMFILE: "raise the limit on open files (ulimit -n)",
        }.get(error.errno or 0, f"check the file system {mount}")
        # `path`, since the name of a temporary would tell the user nothing.
        words = (
            f"cannot write {path}: {error.strerror}; {advice}. What was saved before is whole: the same "
            "command goes on from there"
        )
        raise StorageError(error.errno, words, str(path)) from error


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file of at most `max_bytes`.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ConfigError(f"{path} is not a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path} (from {Path.cwd()}): {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise ConfigError(f"cannot read {shown(str(path))}: {error}") from error
    if len(data) > max_bytes:
        raise ConfigError(f"{path} has more than the {max_bytes:,} bytes that such a file may have")
    return data


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, *, max_bytes: int = 8 << 20) -> object:
    """The value of a strict JSON file of at most `max_bytes`.

    Raises:
        ConfigError: naming the file, and the place or what is wrong: syntax errors, NaN and infinities,
            integers of more than 64 bits, a key given twice, or nesting deeper than `MAX_DEPTH`.
    """
    data = read_bytes(path, max_bytes=max_bytes)
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_integer,
        )
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not strict JSON: {error}") from error
    if is_deep(value):
        raise ConfigError(f"{path} is nested too deeply, in more than {MAX_DEPTH} lists and tables")
    return value


def is_deep(value: object, most: int = MAX_DEPTH) -> bool:
    """Whether more than `most` lists and tables are in each other."""
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return most == 0 or any(is_deep(part, most - 1) for part in parts)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} is given twice")
        found[key] = value
    return found


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:50]} is too large for a float")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**63:
        raise ValueError(f"{text[:50]} is an integer of more than 64 bits")
    return value


# -- settings ------------------------------------------------------------------------------------------


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        ConfigError: naming the path tried, or line and column of what is wrong.
    """
    raw = read_bytes(path, max_bytes=MAX_BYTES)
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    deep = ConfigError(f"{path}: nested deeper than {MAX_DEPTH}; a config is a flat table of settings")
    # The time that a key takes grows with the square of its parts.
    if any(len(_DOT.findall(line)) > MAX_DEPTH for line in text.splitlines()):
        raise deep
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise deep from error
    except ValueError as error:  # also for an integer of thousands of digits
        looks_yaml = re.search(r"^[ \t]*[\w-]+:\s", text, re.MULTILINE) is not None
        hint = "; the file looks like YAML, but configs are TOML: key = value" if looks_yaml else ""
        raise ConfigError(f"{path}: {error}{hint}") from error
    if is_deep(values):
        raise deep
    if not values:
        raise ConfigError(f"{path}: empty config")
    return values


def write_toml(values: Mapping[str, object]) -> str:
    """The inverse of `read_toml`; what is `None` or empty is left out."""
    return tomli_w.dumps({name: value for name, value in values.items() if value not in (None, (), {})})


def override(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`values` with `key=value` or `table.key=value` assignments on top, written as in TOML or bare."""
    merged = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        *tables, key = (part.strip() for part in path.split("."))
        if not equals or not key or len(tables) > 1:
            raise ConfigError(f"--set {shown(assignment)}: wanted KEY=VALUE or TABLE.KEY=VALUE")
        target = merged
        for table in tables:
            target = merged.setdefault(table, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {shown(assignment)}: {shown(table)} is no table")
        bare = text.strip()
        try:  # what follows the line would be read as another setting
            target[key] = bare if "\n" in bare or "\r" in bare else tomllib.loads(f"value = {bare}")["value"]
        except (ValueError, RecursionError):
            target[key] = bare
    return merged
