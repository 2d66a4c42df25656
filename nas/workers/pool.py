"""The worker processes of one machine: started, watched, replaced, and brought to their end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from nas.errors import ConfigError, DeviceError, NoModelError, SpaceError, StorageError, WorkersError
from nas.text import counted
from nas.workers.slots import Slot

GRACE_S = 20.0
"""Seconds that a worker has to save its trial and end."""
START_S = 300.0
"""Seconds until the first sign of life, while the libraries are loaded."""
DEATHS = 5
"""So many deaths for each worker, without a trial being done, are too many."""

_DONE = {0, NoModelError.exit_code}
"""The second is that of a search whose last trials all failed, which the coordinator sees by itself."""
_REFUSED = {ConfigError.exit_code, SpaceError.exit_code, StorageError.exit_code}
_CRASHES = {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}


class Child(Protocol):
    """A started process that leads a process group of its own."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""


Start = Callable[[Slot, int], Child]
"""Starts the worker of a slot, which writes its signs of life to a descriptor (see `nas.workers.pulse`)."""


@dataclass
class _Post:
    """A slot and the process that is at work there now.

    silent_s: seconds since its last sign of life. heard: whether there was one. killed: whether by us.
    code: with which it has ended.
    """

    slot: Slot
    child: Child
    pulse: int
    silent_s: float = 0.0
    heard: bool = False
    killed: bool = False
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code once the process has ended; whatever children it has left are killed at that moment.

        Later on its number may mean another process, or another group.
        """
        if self.code is None and (code := self.child.poll()) is not None:
            _signal(self, signal.SIGKILL)
            self.code = code
        return self.code


class Pool:
    """The workers of one coordinator. Leaving it kills whatever is left of them.

    start: see `Start`. last_words: the end of what the worker of a slot has said.
    lease_s: see `nas.workers.claims.Leased`. A worker that gives no sign of life for half of that is killed
      with all its children, so that whatever it was holding is free before others seem silent, too.
    note: told what happens, for the user.
    killed_for_memory: a counter that grows when the system kills processes for want of memory, or None where
      there is no telling.

    A worker that dies is replaced. When the system killed workers twice for want of memory, half of them must
    do. A GPU on which workers died twice is not used again. A worker that ends with a user's error ends the
    search with it.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        start: Start,
        *,
        lease_s: float,
        grace_s: float = GRACE_S,
        last_words: Callable[[Slot], str] = lambda _: "",
        note: Callable[[str], None] = lambda _: None,
        killed_for_memory: Callable[[], int | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots, self._start, self._last_words, self._note = list(slots), start, last_words, note
        self._quiet_s, self._grace_s, self._clock = lease_s / 2, grace_s, clock
        self._killed_for_memory = killed_for_memory or memory_kills
        self._posts: list[_Post] = []
        self._looked = clock()
        self._strikes: dict[str, int] = {}
        self._memory_deaths, self._memory_kills = 0, self._killed_for_memory()
        self._deaths = 0

    def __enter__(self) -> Self:
        try:
            for slot in self._slots:
                self._posts.append(self._begin(slot))
        except BaseException:
            self.kill_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill_all()

    @property
    def finished(self) -> bool:
        """Whether no worker is at work any more."""
        return not self._posts

    @property
    def pids(self) -> list[int]:
        """Of the workers at work."""
        return [post.child.pid for post in self._posts]

    def progressed(self) -> None:
        """A trial has ended, so that workers do work."""
        self._deaths = 0

    def tend(self) -> list[int]:
        """Replaces the dead and kills the silent; returns the process ids of the latter.

        Raises:
            WorkersError: when workers cannot be kept alive, or refuse to work; with their last words.
        """
        now = self._clock()
        # A coordinator that was frozen itself has heard nothing meanwhile.
        passed, self._looked = min(self._quiet_s / 4, now - self._looked), now
        for post in list(self._posts):
            if (code := post.poll()) is not None:
                self._posts.remove(post)
                self._bury(post, code)
        silent = [post for post in self._posts if self._is_silent(post, passed) and not post.killed]
        for post in silent:
            self._note(f"{post.slot} gave no sign of life for {post.silent_s:.0f} s and is replaced")
            self.kill(post.child.pid)
        return [post.child.pid for post in silent]

    def kill(self, pid: int) -> None:
        """Kills one worker and all its children, and sees it dead; without effect for any other process."""
        for post in self._posts:
            if post.child.pid == pid:
                post.killed = True
                _signal(post, signal.SIGKILL)
                while post.poll() is None:
                    time.sleep(0.01)

    def drain(self) -> None:
        """Asks all workers to save and end, and kills those that have not done so in the time of grace."""
        for post in self._alive():
            with suppress(ProcessLookupError):
                os.kill(post.child.pid, signal.SIGTERM)
                # One that was stopped hears nothing before it goes on.
                os.kill(post.child.pid, signal.SIGCONT)
        deadline = self._clock() + self._grace_s
        while self._alive() and self._clock() < deadline:
            time.sleep(0.02)
        self.kill_all()

    def kill_all(self) -> None:
        """Kills all workers and their children at once."""
        for post in self._alive():
            _signal(post, signal.SIGKILL)
        while self._alive():
            time.sleep(0.01)
        for post in self._posts:
            os.close(post.pulse)
        self._posts.clear()

    def _alive(self) -> list[_Post]:
        return [post for post in self._posts if post.poll() is None]

    def _begin(self, slot: Slot) -> _Post:
        try:
            reading, writing = os.pipe()
        except OSError as error:
            raise _not_started(slot, error) from error
        os.set_blocking(reading, False)
        try:
            return _Post(slot, self._start(slot, writing), reading)
        except BaseException as error:
            os.close(reading)
            if isinstance(error, OSError):
                raise _not_started(slot, error) from error
            raise
        finally:
            os.close(writing)

    def _is_silent(self, post: _Post, passed: float) -> bool:
        post.silent_s += passed
        with suppress(BlockingIOError):
            while os.read(post.pulse, 4096):
                post.heard, post.silent_s = True, 0.0
        return post.silent_s > (self._quiet_s if post.heard else max(self._quiet_s, START_S))

    def _bury(self, post: _Post, code: int) -> None:
        """Draws the conclusions from a worker's end."""
        os.close(post.pulse)
        if code in _DONE:
            return
        if code in _REFUSED:
            raise WorkersError(f"{post.slot} ended: {self._last_words(post.slot)}", exit_code=code)
        self._deaths += 1
        if self._deaths >= DEATHS * len(self._slots):
            raise WorkersError(
                f"workers died {self._deaths} times without a trial being done; the last one, {post.slot}, "
                f"with {_ending(code)}: {self._last_words(post.slot)}"
            )
        if code == -signal.SIGKILL and not post.killed:
            self._count_memory_death()
        if code == DeviceError.exit_code or code in _CRASHES:
            self._strike(post.slot)
        if post.slot in self._slots:
            if not post.killed:
                self._note(f"{post.slot} ended with {_ending(code)} and is replaced")
            self._posts.append(self._begin(post.slot))

    def _count_memory_death(self) -> None:
        kills = self._killed_for_memory()
        if kills is not None and kills == self._memory_kills:
            return  # somebody else sent the signal
        self._memory_kills = kills
        self._memory_deaths += 1
        if self._memory_deaths % 2 == 0 and len(self._slots) > 1:
            self._slots = self._slots[: len(self._slots) // 2]
            self._note(f"memory ran out twice, so that {counted(len(self._slots), 'worker')} must do")
            for post in self._posts:
                if post.slot not in self._slots and post.poll() is None:
                    with suppress(ProcessLookupError):
                        os.kill(post.child.pid, signal.SIGTERM)

    def _strike(self, slot: Slot) -> None:
        """Counts a death that may be the GPU's fault."""
        if slot.gpu is None:
            return
        self._strikes[slot.gpu] = self._strikes.get(slot.gpu, 0) + 1
        if self._strikes[slot.gpu] == 2:
            self._slots = [other for other in self._slots if other.gpu != slot.gpu]
            self._note(f"GPU {slot.gpu} failed twice and is not used again")
        if not self._slots:
            raise WorkersError(f"no GPU is left; the last worker said: {self._last_words(slot)}")


def memory_kills() -> int | None:
    """How many processes the system has killed for want of memory since it was started; None if unknown."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _signal(post: _Post, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(post.child.pid, number)


def _not_started(slot: Slot, error: OSError) -> WorkersError:
    return WorkersError(
        f"{slot} cannot be started: {error.strerror}; raise the limits on processes and open files "
        "(ulimit -u, ulimit -n), free some memory, or use fewer --workers"
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
