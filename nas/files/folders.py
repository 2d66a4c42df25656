"""Folders of runs: how they are named, and what is in the way where they cannot be written to."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from nas.errors import ConfigError
from nas.files.atomic import TEMPORARY


def prepare_folder(path: Path) -> Path:
    """Makes a run folder, or takes an existing one, and returns its absolute path without links.

    Raises ConfigError, saying what is in the way, unless files can be written there; one really is, because
    permission bits say nothing to root, on a read-only disk or on a full one.
    """
    _check_names(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, prefix=TEMPORARY, buffering=0) as probe:
            probe.write(b"\n")
    except OSError as error:
        raise ConfigError(
            f"cannot use {str(path)!r} as the run folder: {_obstacle(path, error)}; choose another folder"
        ) from error
    return path.resolve()


def results_folder(*parts: str) -> Path:
    """The folder in `results` that is named by the last parts of these paths, made of harmless characters."""
    names = ("".join(c if c.isalnum() or c in "._" else "_" for c in Path(part).name) for part in parts)
    return Path("results") / "-".join(names)


def _check_names(path: Path) -> None:
    for part in path.parts:
        if any(ord(character) < 32 or ord(character) == 127 for character in part):
            raise ConfigError(f"the folder name {part!r} holds a control character; use printable ones")
        try:
            size = len(os.fsencode(part))
        except UnicodeEncodeError as error:
            raise ConfigError(f"the folder name {part!r} cannot be encoded: {error.reason}") from error
        if size > 255:
            raise ConfigError(f"the folder name {part[:40]!r}... has {size} bytes; at most 255 are possible")


def _obstacle(path: Path, error: OSError) -> str:
    """The part of the path that is no folder, where there is one; else the system's own words."""
    for part in (path, *path.parents):
        with suppress(OSError):  # a part that may not be looked at is explained by `error`
            if part.is_symlink() and not part.exists():
                return f"{str(part)!r} is a symbolic link that leads nowhere or in a loop"
            if part.exists() and not part.is_dir():
                return f"{str(part)!r} is a file"
    return error.strerror or str(error)
