"""Who a process is, so that others can tell whether it is gone."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Identity:
    """One process, for as long as it lives.

    worker: random, so that no two are ever alike.
    place: where process ids mean the same: one boot of one machine, seen from one container.
    started: when the process began, in ticks since the boot; a later process of the same id began later.
    leads: whether it is the process that a user started for the whole job.
    """

    worker: str
    host: str
    place: str
    pid: int
    started: int
    leads: bool = False

    @classmethod
    def of_this_process(cls, *, leads: bool = False) -> Self:
        """The identity of the process that asks, a new one each time."""
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), here(), pid, _started(pid) or 0, leads)

    @classmethod
    def read(cls, record: object) -> Self | None:
        """The inverse of `to_dict`; None for what is no such record."""
        if not isinstance(record, Mapping) or not set(cls.__dataclass_fields__) <= record.keys():
            return None
        known: dict[str, Any] = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**known)

    def to_dict(self) -> dict[str, str | int | bool]:
        """Plain values for JSON."""
        return asdict(self)

    def is_gone(self) -> bool:
        """Whether the process has surely ended; of a process elsewhere nobody can say, so that is no."""
        if self.place != here():
            return False
        return not _lives(self.pid) if self.started == 0 else _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"pid {self.pid} on host {self.host}"


@cache
def here() -> str:
    """The place of this process; see `Identity`."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return socket.gethostname()


def _started(pid: int) -> int | None:
    """The start of a living process, in ticks since the boot; None for one that has ended or is unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in brackets, may hold anything.
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])


def _lives(pid: int) -> bool:
    """Whether there is such a process, where there is no telling when it began."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
