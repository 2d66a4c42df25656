"""Whether kernels run on a GPU unless something else is asked for: tried there once, and remembered.

A kernel that is wrong for a card may end the process that launches it. So another process does steps of a
small search and of a small training, batched and by kernels (`nas.oneshot.fused.trying`), and what came of it
is kept for this card and these versions, see `nas.files.cached`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess  # nosec B404
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Literal

import torch

from nas.errors import ConfigError, StorageError
from nas.files import strictjson
from nas.files.atomic import read_json, write_json
from nas.files.cached import cache_folder
from nas.files.kernel_lock import KernelLock

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
LIMIT_S = 1200.0
"""For compiling and trying: hundreds of programs, each of which a slow processor takes a second for."""
PATIENCE_S = 0.5
"""After which one that waits for another's try asks whether it has to stop."""
BUSY = 75
"""Exit status of a try that tells nothing, since the GPU was not free or had no memory left for it."""
_FROM_OUTSIDE = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
"""Signals by which no kernel ends a process, but users, batch systems and a machine without memory do."""
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
        return _read(place_of(device))
    except ConfigError:
        return None


def settle(
    device: torch.device,
    *,
    note: Callable[[str], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    anew: bool = False,
) -> Verdict | None:
    """Tries kernels on a device where that has not been done, and remembers what came of it.

    note: is told before it begins, as it takes minutes. stop: asked meanwhile; a try that was stopped tells
    nothing. anew: forget what is known.
    """
    if lacking(device) is not None:
        return None
    try:
        place = place_of(device)
        place.parent.mkdir(parents=True, exist_ok=True)
        holder = _held(place.with_suffix(".lock"), stop)
    except (OSError, ConfigError) as error:
        note(f"WARNING: kernels are not tried, since that cannot be remembered: {error}")
        return None
    if holder is None:
        return None
    try:
        # Another process may have tried them while this one waited.
        found = None if anew else _read(place)
        if found is None:
            note("trying kernels on this GPU once, which takes minutes (not with --execution batched)")
            found = attempt(device, stop=stop)
            if found is not None:
                _keep(place, found, note)
    except OSError as error:  # no room for a temporary folder, or for another process
        note(f"WARNING: kernels cannot be tried: {error}")
        return None
    finally:
        holder.release()
    return found


def attempt(
    device: torch.device,
    *,
    stop: Callable[[], bool] = lambda: False,
    program: Sequence[str] = (sys.executable, "-P", "-m", "nas.oneshot.fused.trying"),
    limit_s: float = LIMIT_S,
) -> Verdict | None:
    """What a process of its own finds out; None where that tells nothing.

    program: is given the device, and descriptors of a file to write and of a pipe that breaks when this
        process has ended. The files have no names, so that nothing is left of them however this one ends.
    """
    with tempfile.TemporaryFile() as outcome, tempfile.TemporaryFile() as words, _pipe() as pulse:
        # A program of the engine's own, without a shell; a session of its own, so that an interruption of
        # this process is not taken for a failure of that one.
        child = subprocess.Popen(  # nosec B603
            [*program, str(device), str(outcome.fileno()), str(pulse)],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=(outcome.fileno(), pulse),
            start_new_session=True,
        )
        try:
            status = _wait(child, stop, time.monotonic() + limit_s)
        finally:
            child.kill()
            child.wait()
        if status == BUSY or (status is None and stop()):
            return None
        if status is not None and -status in _FROM_OUTSIDE:
            return None
        if status is None:
            return Verdict(failed=f"it did not end in {limit_s:g} s")
        if status != 0:
            return Verdict(failed=f"it ended with {_meaning(status)}: {_last_line(words)}")
        found = _written(outcome)
        return Verdict(failed="it wrote no outcome") if found is None else found


def blame(why: str) -> str:
    """Takes kernels for the cause of a fault of a GPU where they ran by a verdict, and uses them no more.

    Returns what to say of it; nothing where they did not run.
    """
    said = ""
    for device in _BY_VERDICT:
        _keep(place_of(device), Verdict(failed=f"a job ended with {why}"), lambda _: None)
        said = "; kernels ran, and do so no more on this GPU until nas doctor --try-kernels finds them right"
    _BY_VERDICT.clear()
    return said


@cache
def place_of(device: torch.device) -> Path:
    """The file that remembers: one for each kind of card and versions of what compiles and runs.

    Raises:
        ConfigError: where the user has no folder for it.
    """
    card = (torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    versions = [_version(name) for name in ("nas-engine", "torch", "triton", "cuda-core")]
    key = repr((card, torch.version.cuda, *versions))
    return cache_folder() / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def lacking(device: torch.device) -> str | None:
    """Why a device has no kernels, in words; None where it has."""
    if device.type != "cuda":
        return f"the device is {device}"
    return None if find_spec("triton") is not None else "Triton is not installed"


def _held(path: Path, stop: Callable[[], bool]) -> KernelLock | None:
    """The lock of a file, once nobody else has it; None where it was not waited for any longer.

    Raises:
        ConfigError: where somebody has it for longer than a try takes.
    """
    path.touch()
    until = time.monotonic() + 2 * LIMIT_S
    while not stop():
        holder = KernelLock(str(path), patience_s=PATIENCE_S)
        try:
            holder.acquire()
        except ConfigError:
            if time.monotonic() > until:
                raise
            continue
        return holder
    return None


@contextmanager
def _pipe() -> Iterator[int]:
    """Where to write to somebody who need not read, see `nas.workers.pulse`."""
    reading, writing = os.pipe()
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


def _wait(child: subprocess.Popen[bytes], stop: Callable[[], bool], until: float) -> int | None:
    """Its exit status, None where it was not waited for any longer."""
    while time.monotonic() < until and not stop():
        try:
            return child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    return None


def _meaning(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def _last_line(file: BinaryIO) -> str:
    file.seek(0)
    lines = file.read()[-2000:].decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _read(path: Path) -> Verdict | None:
    try:
        if not path.is_file():
            return None
        return _verdict(read_json(path, max_bytes=1 << 16))
    except (ConfigError, OSError):
        return None


def _written(file: BinaryIO) -> Verdict | None:
    file.seek(0)
    try:
        return _verdict(strictjson.loads(file.read().decode()))
    except ValueError:
        return None


def _verdict(data: object) -> Verdict | None:
    try:
        assert isinstance(data, dict)
        tried = {kind: Tried(**data["tried"][kind]) for kind in KINDS if kind in data["tried"]}
        return Verdict(tried, str(data["failed"]))
    except (AssertionError, KeyError, TypeError):
        return None


def _keep(path: Path, found: Verdict, note: Callable[[str], None]) -> None:
    try:
        write_json(path, asdict(found))
    except StorageError as error:
        note(f"WARNING: what came of trying kernels is not remembered: {error}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
