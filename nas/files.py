"""Run folders and their files: whole or not at all on disk, strict JSON, checksums, one owner at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from nas import strictjson
from nas.errors import ConfigError, StorageError
from nas.paths import is_inside
from nas.text import shown

MANIFEST = "manifest.json"
LOCK = "run.lock"
TEMPORARY = ".tmp-"
"""How the name of a file that is still being written begins."""

_PASSING = (errno.EIO, errno.ESTALE, errno.ENOLCK, errno.EAGAIN)
"""Faults of a file server that may be over in a moment."""
_PAUSES_S = (0.1, 0.5)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data` at the descriptor's position, in as many calls as it takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


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
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces the file at `path` by `data`, whole or not at all; faults that may pass are tried again.

    Raises:
        StorageError: when the file system refuses.
    """
    for pause_s in _PAUSES_S:
        try:
            _write_once(path, data)
        except StorageError as error:
            if error.errno not in _PASSING:
                raise
            time.sleep(pause_s)
        else:
            return
    _write_once(path, data)


def _write_once(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns what the file system refuses while `path` is written into a StorageError that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        # The name of a temporary would tell the user nothing.
        raise StorageError(error.errno, _refused(path, error), str(path)) from error


def _refused(path: Path, error: OSError) -> str:
    mount = _mount(path)
    advice = {
        errno.ENOSPC: f"free some {'inodes' if _lacks_inodes(path) else 'space'} on {mount}",
        errno.EDQUOT: f"remove something of yours on {mount}, or ask for a larger quota",
        errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
        errno.EROFS: f"make {mount} writable",
        errno.EMFILE: "raise the limit on open files (ulimit -n)",
    }.get(error.errno or 0, f"check the file system {mount}")
    return (
        f"cannot write {path}: {error.strerror}; {advice}. What was saved before is whole: the same command "
        "goes on from there"
    )


def _mount(path: Path) -> Path:
    """Where the file system of a path is mounted."""
    places = (place for place in path.absolute().parents if place.is_mount())
    return next(places, Path(path.anchor or "/"))


def _lacks_inodes(path: Path) -> bool:
    try:
        free = os.statvfs(path.parent)
    except OSError:
        return False
    return free.f_files > 0 and free.f_favail == 0 and free.f_bavail > 0


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


def read_json(path: Path, *, max_bytes: int = 8 << 20) -> object:
    """The value of a strict JSON file of at most `max_bytes`; see `nas.strictjson`.

    Raises:
        ConfigError: naming the file, and the place or what is wrong.
    """
    data = _read_bounded(path, max_bytes)
    try:
        return strictjson.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{path} is not strict JSON: {error}") from error


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file, or ConfigError."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a regular file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path} (from {Path.cwd()}): {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise ConfigError(f"cannot read {shown(str(path))}: {error}") from error
    if len(data) > max_bytes:
        raise ConfigError(f"{path} has more than the {max_bytes} bytes that such a file may have")
    return data


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, names: Iterable[str] | None = None) -> Path:
    """Writes `manifest.json`, the size and SHA-256 of each named file, and returns its path.

    names: paths relative to `folder`, with `/`; None takes every regular file below it that is a result: not
    the manifest itself, locks, unfinished files, checkpoints, event files or the journal.
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


def _results(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        working = name.parts[0] in ("checkpoint", "parked", "tensorboard") or str(name).startswith(
            "study.log"
        )
        unfinished = path.name.startswith(TEMPORARY) or path.suffix == ".lock"
        if path.is_file() and not (path.is_symlink() or working or unfinished or str(name) == MANIFEST):
            yield name.as_posix()


def _fingerprint(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise ConfigError(f"cannot list {path} in a manifest: there is no such file")
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def read_manifest(folder: Path) -> dict[str, object]:
    """What the manifest of a folder says of each file."""
    manifest = read_json(folder / MANIFEST)
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


def _problem(folder: Path, name: str, recorded: object) -> str:
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        return f"{name!r}: outside the folder"
    try:
        if not is_inside(folder / relative, folder):
            return f"{name!r}: outside the folder"
        if not (folder / relative).is_file():
            return f"{name}: missing"
        same = _fingerprint(folder / relative) == recorded
    except OSError as error:
        return f"{name}: {error.strerror}"
    return "" if same else f"{name}: differs from what was recorded"


def prepare_folder(path: Path) -> Path:
    """Makes a run folder, or takes an existing one, and returns its absolute path without links.

    Raises ConfigError, saying what is in the way, unless files can be written there; one really is, because
    permission bits say nothing to root, on a read-only disk or on a full one.
    """
    _check_names(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=TEMPORARY, buffering=0) as probe:
            probe.write(b"\n")
    except OSError as error:
        raise ConfigError(
            f"cannot use {str(path)!r} as the run folder: {_obstacle(path, error)}; choose another folder"
        ) from error
    return path.resolve()


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


class FolderLock:
    """A run folder's lock: one process owns the folder, a second one is told who does.

    It is an open-file lock on `run.lock`, so the kernel frees it when the owner dies, however it dies. The
    file says who the owner is and stays behind; only the lock counts. Children do not inherit it.

    otherwise: what else a second process can do, beside waiting or going elsewhere.
    """

    def __init__(self, folder: Path, *, otherwise: str = "") -> None:
        self._path, self._otherwise = folder / LOCK, otherwise
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock, or raises ConfigError naming the owner's pid and host."""
        try:
            # What is locked is also cut and written to, so it must not be a link to something else.
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise ConfigError(f"cannot open the lock {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_owner(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(self._refusal(error)) from error
        self._descriptor = descriptor
        # A forked child shares the open file: it would keep the lock alive after its parent's death.
        os.register_at_fork(after_in_child=self._close)

    def release(self) -> None:
        """Gives the lock back; without effect when it is not held."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._close()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _refusal(self, error: OSError) -> str:
        if not isinstance(error, BlockingIOError):
            return f"cannot lock {self._path}: {error.strerror}"
        return (
            f"the run folder {str(self._path.parent)!r} is in use by {self._owner()}; "
            f"wait until it ends, stop it, or choose another folder{self._otherwise}"
        )

    def _owner(self) -> str:
        try:
            owner = read_json(self._path, max_bytes=4096)
        except ConfigError:  # the owner has the lock but has not written its name yet
            return "another process"
        if not isinstance(owner, dict):
            return "another process"
        return f"pid {owner.get('pid')} on host {owner.get('host')} since {owner.get('started')}"


def _write_owner(descriptor: int) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    os.ftruncate(descriptor, 0)
    write_all(descriptor, (json.dumps(owner) + "\n").encode())


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes a rename or a new file in `folder` last through a power loss, where the file system can."""
    try:
        _sync(folder, os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems without such a call
            raise
