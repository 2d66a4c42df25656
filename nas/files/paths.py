"""Names and paths from outside: which are usable, and which lead where they must not."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from nas.errors import ConfigError
from nas.text import shown

MAX_NAME = 100
_NAME = re.compile(rf"\w(?:[\w .,+=@()-]{{0,{MAX_NAME - 2}}}[\w+=@()-])?")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check_name(name: str, what: str) -> None:
    """Refuses a name of a run or a study that some file system or database could not hold.

    Raises:
        ConfigError: showing the characters that a name may have.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the {what}'s name is {shown(name)}; wanted 1 to {MAX_NAME} letters, digits and _-+=@(), inside "
            "also dots, commas and spaces"
        )
    if _DEVICES.fullmatch(name):
        raise ConfigError(f"the {what}'s name is {name!r}, which Windows keeps for a device")


def is_file(path: Path) -> bool:
    """Whether there is such a file; a text too long or too strange for a name is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a text too long or too strange for a name is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; a text too long or too strange for a name is none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_contents(folder: Path) -> None:
    """Refuses a run's folder that holds a link leading out of it, or anything but files and folders.

    By such a link, a folder from somewhere else could make us read, overwrite or cut a file of the user's;
    a pipe would make us wait for ever.
    """
    # Not rglob, which fails when another process removes a folder meanwhile.
    inside = (Path(place, name) for place, *names in os.walk(folder) for name in itertools.chain(*names))
    for path in inside:
        if path.is_symlink() and not is_inside(path, folder):
            raise ConfigError(
                f"{path} is a symbolic link that leads out of its folder; remove it or put the file there"
            )
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigError(f"{path} is neither a file nor a folder; remove it")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path still lies in a folder when all links are followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a loop
        return False
