"""Tries kernels on a GPU once, in a process of its own, and remembers what came of it, see `verdict`.

A kernel that is wrong for a card may end the process that launches it. So another process does steps of a
small search and of a small training, batched and by kernels (`nas.oneshot.fused.trying`).
"""

from __future__ import annotations

import os
import signal
import subprocess  # nosec B404
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from nas.errors import ConfigError
from nas.files import strictjson
from nas.files.kernel_lock import KernelLock
from nas.oneshot.fused import verdict
from nas.oneshot.fused.verdict import Verdict

LIMIT_S = 1200.0
"""For compiling and trying: hundreds of programs, each of which a slow processor takes a second for."""
PATIENCE_S = 0.5
"""After which one that waits for another's try asks whether it has to stop."""
BUSY = 75
"""Exit status of a try that tells nothing, since the GPU was not free or had no memory left for it."""
_FROM_OUTSIDE = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
"""Signals by which no kernel ends a process, but users, batch systems and a machine without memory do."""


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
    if verdict.lacking(device) is not None:
        return None
    try:
        place = verdict.place_of(device)
        place.parent.mkdir(parents=True, exist_ok=True)
        holder = _held(place.with_suffix(".lock"), stop)
    except (OSError, ConfigError) as error:
        note(f"WARNING: kernels are not tried, since that cannot be remembered: {error}")
        return None
    if holder is None:
        return None
    try:
        # Another process may have tried them while this one waited.
        found = None if anew else verdict.read(place)
        if found is None:
            note("trying kernels on this GPU once, which takes minutes (not with --execution batched)")
            found = attempt(device, stop=stop)
            if found is not None:
                verdict.keep(place, found, note)
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


def _written(file: BinaryIO) -> Verdict | None:
    file.seek(0)
    try:
        return Verdict.of(strictjson.loads(file.read().decode()))
    except ValueError:
        return None
