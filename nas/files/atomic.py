"""Files that are whole or not at all on the disk, and strict JSON in them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from nas.errors import ConfigError, StorageError
from nas.files import strictjson
from nas.text import shown

TEMPORARY = ".tmp-"
"""How the name of a file that is still being written begins."""

PASSING = (errno.EIO, errno.ESTALE, errno.ENOLCK, errno.EAGAIN)
"""Faults of a file server that may be over in a moment."""
_PAUSES_S = (0.1, 0.5)
_YOUNG_S = 600.0
"""No file is written for so long."""


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
            if error.errno not in PASSING:
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


def remove_unfinished(folder: Path) -> None:
    """Removes the temporary files that killed writers left in a folder; a young one may be in use."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # gone meanwhile, or not ours to remove
            if time.time() - path.lstat().st_mtime > _YOUNG_S:
                path.unlink()


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
    """The value of a strict JSON file of at most `max_bytes`; see `nas.files.strictjson`.

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


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's temporary directory, for the time of the block.

    One that a killed process left is removed when a process of the same user and machine opens its next one.
    Each is locked by its process (an open-file lock), which the kernel undoes however that ends; where a file
    system has no such locks, those of killed processes stay. Some tell no other machine of a lock, so names
    say which machine a folder is of.

    Raises:
        OSError: when none can be made.
    """
    _sweep()
    with ExitStack() as at_end:
        folder = _made(at_end)
        at_end.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _made(at_end: ExitStack) -> Path:
    """A new folder, locked until the end; another process may remove one before its lock, see `_sweep`."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix()))
        with suppress(FileNotFoundError), ExitStack() as on_failure:
            descriptor = os.open(folder, os.O_RDONLY)
            on_failure.callback(os.close, descriptor)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                at_end.push(on_failure.pop_all())
                return folder


def _sweep() -> None:
    """Removes the folders of this user's processes on this machine that have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        # Where it is another user's, in use, or gone meanwhile, it is left alone.
        with suppress(OSError), ExitStack() as at_end:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            at_end.callback(os.close, descriptor)
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    return f"nas-temporary-{socket.gethostname()}@"


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
