"""How many workers a device bears: one small candidate trained by ever more processes at a time."""

from __future__ import annotations

import subprocess  # nosec B404
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Protocol, Self, cast

from nas.errors import WorkersError

GAIN = 1.1
"""More workers must bring at least so many times the throughput."""
ROOM = 0.8
"""The share of the free memory that more workers may take; candidates are not all of one size."""
LIMIT_S = 300.0
"""Seconds for an answer; the first one takes as long as loading libraries and data does."""
SECONDS = 2.0
"""How long each number of workers is tried."""


@dataclass(frozen=True)
class Tried:
    """What was measured with so many workers at a time.

    steps_per_s: of all together. bytes_each: of memory that a worker takes, the largest.
    free_bytes: of memory that is left beside all of them.
    """

    workers: int
    steps_per_s: float
    bytes_each: int
    free_bytes: int

    def __str__(self) -> str:
        return f"{self.workers} at a time: {self.steps_per_s:.1f} steps/s"


Try = Callable[[int], Tried]
"""Measures so many workers at a time; called with ever larger numbers."""


def probe(try_out: Try, *, most: int, on_try: Callable[[Tried], None] = lambda _: None) -> int:
    """The number of workers with the best throughput: doubled from 1 up to `most`, as long as that pays.

    It stops before the memory would not hold the next ones, and where they cannot be started.
    """
    best = try_out(1)
    on_try(best)
    while (count := min(2 * best.workers, most)) > best.workers:
        if (count - best.workers) * best.bytes_each > ROOM * best.free_bytes:
            break
        try:
            tried = try_out(count)
        except WorkersError:
            break
        on_try(tried)
        if tried.steps_per_s < GAIN * best.steps_per_s:
            break
        best = tried
    return best.workers


class Sample(Protocol):
    """A process that trains when it is told to."""

    def run(self, seconds: float, threads: int) -> None:
        """Begins to train for so long; waits until the process is ready, but no longer."""

    def result(self) -> tuple[float, int, int]:
        """Steps a second, bytes of memory taken, and bytes that are left; waits for them."""

    def close(self) -> None:
        """Ends the process."""


class Crowd:
    """A `Try` whose processes stay, so that each number adds to those before.

    start: starts one more. threads: of each, given how many they are.
    """

    def __init__(
        self, start: Callable[[], Sample], threads: Callable[[int], int], *, seconds: float = SECONDS
    ) -> None:
        self._start, self._threads, self.seconds = start, threads, seconds
        self._samples: list[Sample] = []

    def __call__(self, workers: int) -> Tried:
        """Trains with so many at a time."""
        known = len(self._samples)
        while len(self._samples) < workers:  # each is ended in the end, also when the next cannot be started
            self._samples.append(self._start())
        for sample in self._samples[known:]:  # all must be ready before any begins
            sample.run(0.0, 1)
            sample.result()
        for sample in self._samples:
            sample.run(self.seconds, self._threads(workers))
        rates, taken, free = zip(*(sample.result() for sample in self._samples), strict=True)
        return Tried(workers, sum(rates), max(taken), min(free))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sample in self._samples:
            sample.close()


class SampleProcess:
    """A sample that is told what to do in lines on its standard input; see `nas.workers.sample`.

    limit_s: it is killed when an answer takes longer.

    Raises:
        WorkersError: when the process ends before its time, with what it said.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, limit_s: float = LIMIT_S
    ) -> None:
        self._limit_s = limit_s
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process is
        try:
            self._process = subprocess.Popen(  # nosec B603
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=environment,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            self._said.close()
            raise WorkersError(f"no process can be started to try a candidate: {error.strerror}") from error

    def run(self, seconds: float, threads: int) -> None:
        """Begins to train for so long."""
        try:
            print(seconds, threads, file=cast(IO[str], self._process.stdin), flush=True)
        except BrokenPipeError as error:
            raise self._failure() from error

    def result(self) -> tuple[float, int, int]:
        """Steps a second, bytes of memory taken, and bytes that are left."""
        # One that hangs would be waited for for ever.
        limit = threading.Timer(self._limit_s, self._process.kill)
        limit.start()
        try:
            line = cast(IO[str], self._process.stdout).readline()
        finally:
            limit.cancel()
        if not line:
            raise self._failure()
        rate, taken, free = line.split()
        return float(rate), int(taken), int(free)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            with suppress(BrokenPipeError):  # what it has not read
                cast(IO[str], pipe).close()

    def _failure(self) -> WorkersError:
        self._process.wait()
        self._said.seek(0)
        words = self._said.read().decode(errors="replace").strip()
        return WorkersError(f"a candidate cannot be trained to find the number of workers: {words[-2000:]}")
