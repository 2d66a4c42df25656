"""Compiled kernels kept on disk, so that not every process compiles them again, as Triton does with its own.

In `cubins` in the folder of `nas.files.cached`. What cannot be read there is compiled, and what cannot be
written is not kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nas.errors import ConfigError
from nas.files.cached import cache_folder


@dataclass(frozen=True)
class Cubin:
    """A kernel. symbol: its name in the code."""

    symbol: bytes
    code: bytes

    @property
    def packed(self) -> bytes:
        """As it is kept: a torn file is known by its first line."""
        data = self.symbol + b"\n" + self.code
        return hashlib.sha256(data).hexdigest().encode() + b"\n" + data

    @classmethod
    def unpacked(cls, packed: bytes) -> Cubin | None:
        """The kernel that was kept; None where that is damaged."""
        parts = packed.split(b"\n", 2)
        found = cls(*parts[1:]) if len(parts) == 3 else None
        return found if found is not None and found.packed == packed else None


def kept(key: Sequence[str], make: Callable[[], Cubin]) -> Cubin:
    """The kernel of a key, made where there is none yet. key: all that decides what is made."""
    place = _place(key)
    found = None if place is None else _read(place)
    if found is None:
        found = make()
        if place is not None:
            _write(place, found)
    return found


def _place(key: Sequence[str]) -> Path | None:
    """Where it is; None for a user without a folder for it."""
    try:
        folder = cache_folder() / "cubins"
    except ConfigError:
        return None
    return folder / hashlib.sha256(repr(tuple(key)).encode()).hexdigest()


def _read(place: Path) -> Cubin | None:
    try:
        return Cubin.unpacked(place.read_bytes())
    except OSError:
        return None


def _write(place: Path, cubin: Cubin) -> None:
    """In place, for a killed process leaves no other file then, and what is torn is compiled again."""
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(cubin.packed)
