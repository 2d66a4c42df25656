"""The manifest of a folder: size and checksum of each of its files, by which damage is found."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nas.errors import ConfigError
from nas.files.atomic import TEMPORARY, read_json, sha256, write_json
from nas.files.paths import check_contents, is_inside

MANIFEST = "manifest.json"
HISTORY = "study.log"
"""Of it, what there was when the run finished must still be there: a worker that is late may add to it."""
_WORKING = ("checkpoint", "tensorboard")
"""Folders inside a run's that hold no results."""


def write_manifest(folder: Path, names: Iterable[str] | None = None) -> Path:
    """Writes `manifest.json`, the size and SHA-256 of each named file, and returns its path.

    names: paths relative to `folder`, with `/`; None takes every regular file below it that is a result: not
    the manifest itself, locks, unfinished files, checkpoints, event files or what is left of a journal.
    """
    chosen = sorted(_results(folder) if names is None else names)
    files = {name: _fingerprint(folder / name) for name in chosen}
    write_json(folder / MANIFEST, {"files": files})
    return folder / MANIFEST


def update_manifest(folder: Path, names: Iterable[str]) -> None:
    """Records these files of a finished run as they are now, and forgets those that are gone.

    What the manifest says of all others stays, so that damage to them is still found.

    Raises:
        ConfigError: when there is no manifest, or it is damaged.
    """
    chosen = set(names)
    files = {name: entry for name, entry in read_manifest(folder).items() if name not in chosen}
    files |= {name: _fingerprint(folder / name) for name in chosen if (folder / name).is_file()}
    write_json(folder / MANIFEST, {"files": dict(sorted(files.items()))})


def read_manifest(folder: Path) -> dict[str, object]:
    """What the manifest of a folder says of each file.

    Raises:
        ConfigError: when there is none, it is damaged, or the folder holds a link out of it.
    """
    if not (folder / MANIFEST).exists():
        raise ConfigError(f"{folder} holds no finished run: there is no {MANIFEST} in it")
    check_contents(folder)
    try:
        manifest = read_json(folder / MANIFEST)
    except ConfigError as error:
        raise ConfigError(f"{error}; restore it, or remove it and repeat the run's command") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise ConfigError(f'{folder / MANIFEST} is not a manifest: it has no table "files"')
    return files


def check_manifest(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with the files of `manifest.json`, one line each; empty when all are as recorded.

    names: looks at these only; a file that the manifest does not list is nothing wrong.
    """
    files = read_manifest(folder)
    chosen = files if names is None else {name: files[name] for name in names if name in files}
    return [problem for name, recorded in chosen.items() if (problem := _problem(folder, name, recorded))]


def require_intact(folder: Path, *names: str) -> None:
    """Raises ConfigError when one of these files differs from the folder's manifest, where there is one."""
    if (folder / MANIFEST).is_file() and (damage := check_manifest(folder, names)):
        raise damaged(folder, damage)


def damaged(folder: Path, damage: Iterable[str]) -> ConfigError:
    """The refusal of a folder whose files are not as recorded, with what to do."""
    return ConfigError(
        f"{folder} is damaged: {'; '.join(damage)} in {MANIFEST}; restore it from a copy, or run its command "
        "again with another --out folder (what you edited yourself belongs in a folder of its own)"
    )


def _results(folder: Path) -> Iterator[str]:
    # Not rglob, which fails when another process removes a folder meanwhile.
    for place, below, names in os.walk(folder):
        if Path(place) == folder:
            below[:] = [name for name in below if name not in _WORKING]
        for path in (Path(place, name) for name in names):
            name = path.relative_to(folder).as_posix()
            unfinished = path.name.startswith(TEMPORARY) or path.suffix == ".lock"
            left = name.startswith(HISTORY) and name != HISTORY
            if path.is_file() and not (path.is_symlink() or unfinished or left or name == MANIFEST):
                yield name


def _fingerprint(path: Path, most: object = None) -> dict[str, object]:
    """most: bytes of a history that count; all whole lines unless given."""
    if not path.is_file():
        raise ConfigError(f"cannot list {path} in a manifest: there is no such file")
    if path.name != HISTORY:
        return {"sha256": sha256(path), "bytes": path.stat().st_size}
    data = path.read_bytes()
    data = data[: most if isinstance(most, int) else data.rfind(b"\n") + 1]
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _problem(folder: Path, name: str, recorded: object) -> str:
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        return f"{name!r}: outside the folder"
    try:
        if not is_inside(folder / relative, folder):
            return f"{name!r}: outside the folder"
        if not (folder / relative).is_file():
            return f"{name}: missing"
        most = recorded.get("bytes") if isinstance(recorded, dict) else None
        same = _fingerprint(folder / relative, most) == recorded
    except OSError as error:
        return f"{name}: {error.strerror}"
    return "" if same else f"{name}: differs from what was recorded"
