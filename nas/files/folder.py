"""Folders of results: names and paths from outside, who owns a folder, and the manifest of its files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from nas.errors import ConfigError, shown
from nas.files.atomic import TEMPORARY, read_json, sha256, write_json

LOCK = "run.lock"
MANIFEST = "manifest.json"
HISTORY = "study.log"
"""Of it, what there was when the run finished must still be there: a worker that is late may add to it."""

_MAX_NAME = 100
_NAME = re.compile(rf"\w(?:[\w .,+=@()-]{{0,{_MAX_NAME - 2}}}[\w+=@()-])?")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_WORKING = ("checkpoint", "tensorboard")
"""Folders inside a run's that hold no results."""


def check_name(name: str, what: str) -> None:
    """Refuses a name of a run or a study that some file system or database could not hold.

    Raises:
        ConfigError: showing the characters that a name may have.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the {what}'s name is {shown(name)}; wanted 1 to {_MAX_NAME} letters, digits and _-+=@(), "
            "inside also dots, commas and spaces"
        )
    if _DEVICES.fullmatch(name):
        raise ConfigError(f"the {what}'s name is {name!r}, which Windows keeps for a device")


def is_file(path: Path) -> bool:
    """Whether there is such a file; a text too long or too strange for a name is none."""
    return os.path.isfile(path)  # noqa: PTH113 - that of Path raises for such a text


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a text too long or too strange for a name is none."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; a text too long or too strange for a name is none."""
    return os.path.exists(path)  # noqa: PTH110


def prepare_folder(path: Path) -> Path:
    """Makes a run folder, or takes an existing one, and returns its absolute path without links.

    Raises ConfigError, saying what is in the way, unless files can be written there; one really is, because
    permission bits say nothing to root, on a read-only disk or on a full one.
    """
    if not str(path).isprintable():
        raise ConfigError(f"the folder name {shown(str(path))} has characters that cannot be printed")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, prefix=TEMPORARY, buffering=0) as probe:
            probe.write(b"\n")
    except OSError as error:
        blocking = (p for p in (path, *path.parents) if os.path.lexists(p) and not is_folder(p))
        part = next(blocking, None)
        why = error.strerror if part is None else f"{str(part)!r} is a file or a link that leads nowhere"
        raise ConfigError(
            f"cannot use {str(path)!r} as the run folder: {why}; choose another folder"
        ) from error
    return path.resolve()


def results_folder(*parts: str) -> Path:
    """The folder in `results` that is named by the last parts of these paths, made of harmless characters."""
    names = ("".join(c if c.isalnum() or c in "._" else "_" for c in Path(part).name) for part in parts)
    return Path("results") / "-".join(names)


def check_contents(folder: Path) -> None:
    """Refuses a run's folder that holds a link leading out of it, or anything but files and folders.

    By such a link, a folder from somewhere else could make us read, overwrite or cut a file of the user's;
    a pipe would make us wait for ever.
    """
    for path in _inside(folder):
        if path.is_symlink() and not _is_inside(path, folder):
            raise ConfigError(
                f"{path} is a symbolic link that leads out of its folder; remove it or put the file there"
            )
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigError(f"{path} is neither a file nor a folder; remove it")


def _inside(folder: Path) -> Iterator[Path]:
    """Everything in a folder and below; not rglob, which fails when somebody removes a folder meanwhile."""
    for place, folders, names in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *names))


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path still lies in a folder when all links are followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a loop, a NUL in the name
        return False


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Owns a run's folder for the block; a second process, or a second block, is told who does.

    The system frees the lock of a process that ends, however it ends. The file stays behind.

    Raises:
        ConfigError: naming the owner's pid and host, or a link that leads out of the folder.
    """
    check_contents(folder)
    lock = FileLock(folder / LOCK, timeout=0, on_acquired=_sign)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"the run folder {str(folder)!r} is in use by {_owner(folder)}; wait until it ends, stop it, or "
            "choose another folder"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot lock {folder / LOCK}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _sign(descriptor: int) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _owner(folder: Path) -> str:
    try:
        owner = read_json(folder / LOCK, max_bytes=4096)
    except ConfigError:  # the owner has the lock but has not written its name yet
        owner = None
    if not isinstance(owner, dict):
        return "another process"
    return f"pid {owner.get('pid')} on host {owner.get('host')} since {owner.get('started')}"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Runs a block while no other process works in a folder; waits until one that does has gone.

    A worker whose coordinator was killed lives on for a moment, while the next one has begun its trial again.
    """
    lock = FileLock(folder / "lock")
    while not lock.is_locked:
        with suppress(FileNotFoundError):  # whoever had it may remove the folder in the end
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_manifest(folder: Path) -> None:
    """Writes `manifest.json`, the size and SHA-256 of every regular file in the folder that is a result.

    Not the manifest itself, locks, unfinished files, checkpoints, event files or what is left of a journal.
    """
    _write(folder, {name: _fingerprint(folder / name) for name in _results(folder)})


def update_manifest(folder: Path, names: Iterable[str]) -> None:
    """Records these files of a finished run as they are now, and forgets those that are gone.

    What the manifest says of all others stays, so that damage to them is still found.

    Raises:
        ConfigError: when there is no manifest, or it is damaged.
    """
    chosen = set(names)
    files = {name: entry for name, entry in read_manifest(folder).items() if name not in chosen}
    _write(folder, files | {name: _fingerprint(folder / name) for name in chosen if is_file(folder / name)})


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


def _write(folder: Path, files: dict[str, object]) -> None:
    write_json(folder / MANIFEST, {"files": dict(sorted(files.items()))})


def _results(folder: Path) -> Iterator[str]:
    for path in _inside(folder):
        name = path.relative_to(folder).as_posix()
        working = name.partition("/")[0] in _WORKING or name.startswith(f"{HISTORY}.") or name == MANIFEST
        unfinished = path.name.startswith(TEMPORARY) or path.suffix == ".lock"
        if path.is_file() and not (path.is_symlink() or unfinished or working):
            yield name


def _fingerprint(path: Path, most: object = None) -> dict[str, object]:
    """most: bytes of a history that count; all whole lines unless given."""
    if path.name != HISTORY:
        return {"sha256": sha256(path), "bytes": path.stat().st_size}
    data = path.read_bytes()
    data = data[: most if isinstance(most, int) else data.rfind(b"\n") + 1]
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _problem(folder: Path, name: str, recorded: object) -> str:
    if not _is_inside(folder / name, folder):
        return f"{name!r}: outside the folder"
    try:
        if not (folder / name).is_file():
            return f"{name}: missing"
        most = recorded.get("bytes") if isinstance(recorded, dict) else None
        same = _fingerprint(folder / name, most) == recorded
    except OSError as error:
        return f"{name}: {error.strerror}"
    return "" if same else f"{name}: differs from what was recorded"
