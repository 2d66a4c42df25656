"""Whether kernels run on a GPU unless something else is asked for: what came of trying them there.

It is kept for a kind of card, its driver and the versions of what compiles and runs, see `nas.files.cached`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from nas.errors import ConfigError, StorageError
from nas.files.atomic import read_json, write_json
from nas.files.cached import cache_folder

Kind = Literal["search", "training"]
"""Steps of a supernet, and of a stand-alone network."""
KINDS: tuple[Kind, ...] = ("search", "training")
GAIN = 1.05
"""Kernels are used where a step is so many times as fast by them."""
ENOUGH = 2000
"""Steps from which on kernels are used. To compile the programs of a network takes about a minute, the first
time; for so many steps of a large one that is a minute well spent, and for a small one no more is lost.
"""
NEAR = 0.02
"""The largest difference of losses in float32 of a few steps from the same start; of some 2.3."""
DRIVER = Path("/proc/driver/nvidia/version")
"""What the driver of a GPU says of itself on Linux."""
_BY_VERDICT: set[torch.device] = set()
"""Where kernels run in this process because of a verdict."""


@dataclass(frozen=True)
class Tried:
    """Steps of one kind, both ways.

    batched_ms, kernels_ms: of a step, as a CUDA graph where it can be. difference: of losses in float32.
    """

    batched_ms: float
    kernels_ms: float
    difference: float

    @property
    def passed(self) -> bool:
        """Whether kernels are right and worth it."""
        return self.difference <= NEAR and self.batched_ms >= GAIN * self.kernels_ms

    def __str__(self) -> str:
        wrong = "" if self.difference <= NEAR else f", but losses differ by {self.difference:.2g}"
        return f"{self.kernels_ms:.1f} ms a step by kernels, {self.batched_ms:.1f} batched{wrong}"


@dataclass(frozen=True)
class Verdict:
    """What is known of kernels on a card.

    tried: what was measured, by kind of step. failed: why nothing could be measured; empty otherwise.
    """

    tried: Mapping[Kind, Tried] = field(default_factory=dict)
    failed: str = ""

    @classmethod
    def of(cls, data: object) -> Verdict | None:
        """What was written of one; None where that is damaged."""
        try:
            assert isinstance(data, dict)
            tried = {
                kind: Tried(**{name: float(value) for name, value in data["tried"][kind].items()})
                for kind in KINDS
                if kind in data["tried"]
            }
            return cls(tried, str(data["failed"]))
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
            return None

    def kernels(self, kind: Kind) -> bool:
        """Whether they are used."""
        return not self.failed and kind in self.tried and self.tried[kind].passed

    def __str__(self) -> str:
        if self.failed:
            return f"kernels are not used, as trying them failed ({self.failed})"
        ways = {kind: "by kernels" if tried.passed else "batched" for kind, tried in self.tried.items()}
        return "; ".join(f"{kind} {ways[kind]} ({tried})" for kind, tried in self.tried.items())


def uses_kernels(device: torch.device, kind: Kind, steps: int | None = None) -> bool:
    """Whether kernels run steps on a device unless something else is asked for, by what was found out.

    steps: how many; enough unless given.
    """
    if steps is not None and steps < ENOUGH:
        return False
    found = remembered(device)
    used = found is not None and found.kernels(kind)
    if used:
        _BY_VERDICT.add(device)
    return used


def remembered(device: torch.device) -> Verdict | None:
    """What was found out; None where nothing was, or where it cannot be read any more."""
    if lacking(device) is not None:
        return None
    try:
        return read(place_of(device))
    except ConfigError:
        return None


def blame(why: str) -> str:
    """Takes kernels for the cause of a fault of a GPU where they ran by a verdict, and uses them no more.

    Returns what to say of it; nothing where they did not run.
    """
    said = ""
    for device in _BY_VERDICT:
        keep(place_of(device), Verdict(failed=f"a job ended with {why}"), lambda _: None)
        said = "; kernels ran, and do so no more on this GPU until nas doctor --try-kernels finds them right"
    _BY_VERDICT.clear()
    return said


@cache
def place_of(device: torch.device) -> Path:
    """The file that remembers: one for each kind of card, driver and versions of what compiles and runs.

    Raises:
        ConfigError: where the user has no folder for it.
    """
    card = (torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    versions = [_version(name) for name in ("nas-engine", "torch", "triton", "cuda-core")]
    key = repr((card, torch.version.cuda, *versions, _driver()))
    return cache_folder() / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def lacking(device: torch.device) -> str | None:
    """Why a device has no kernels, in words; None where it has."""
    if device.type != "cuda":
        return f"the device is {device}"
    return None if find_spec("triton") is not None else "Triton is not installed"


def read(path: Path) -> Verdict | None:
    """What a file remembers; None where there is none that can be read."""
    try:
        if not path.is_file():
            return None
        return Verdict.of(read_json(path, max_bytes=1 << 16))
    except (ConfigError, OSError):
        return None


def keep(path: Path, found: Verdict, note: Callable[[str], None]) -> None:
    """Remembers it in a file. note: is told where that cannot be."""
    try:
        write_json(path, asdict(found))
    except StorageError as error:
        note(f"WARNING: what came of trying kernels is not remembered: {error}")


def _driver() -> str | None:
    """Its version, in a line; None where it does not tell, as under Windows."""
    try:
        return DRIVER.read_text(errors="replace").partition("\n")[0]
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
