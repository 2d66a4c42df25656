"""Trainings that do not wait for each other, side by side in processes of one thread each.

Where maps are small a second thread makes a training 1.14 times as fast; a second process does nearly twice
as much. A process that dies takes nothing with it but the training that it was at, which goes on from its
checkpoint in a new one.
"""

from __future__ import annotations

import faulthandler
import os
import pickle  # nosec B403 - between a process and its own children
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillAtWork
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import LifoQueue

import cloudpickle
import numpy as np
import torch
from loky import ProcessPoolExecutor

from nas.errors import TrialError, is_users
from nas.evaluation.evaluators import Trained
from nas.evaluation.laddered import Laddered
from nas.files.temporary import temporary_folder
from nas.registry import load
from nas.study import Evaluator
from nas.training.pace import Watch
from nas.training.resumable import Stopped
from nas.types import Trial
from nas.workers.slots import cores

ATTEMPTS = 3
"""So many processes a training may take with it before it has failed."""
POLL_S = 0.2
Measure = Trained | Laddered


class SideBySide:
    """Processes that evaluate trials, each one at a time; `places` of them, none before they are needed.

    folder: where they leave, when they crash, at which line.
    """

    def __init__(self, places: int, folder: Path) -> None:
        self.places = places
        self._all = [_Process(folder / f"{number}.txt") for number in range(places)]
        self._free: LifoQueue[_Process] = LifoQueue()
        self._closed = False
        for process in self._all:
            self._free.put(process)

    def evaluator(self, measure: Measure, *, count: int, threads: int = 1, step_s: float = 0.0) -> Evaluator:
        """What `measure` measures, in one of the processes; for `count` callers at a time, at most `places`.

        threads: that it computes with; one when its steps take far longer than `step_s`.

        Raises:
            TypeError: where it cannot be sent to another process.
        """
        origin, settings = measure.space.origin, dict(measure.space.settings)
        # Code of a file is loaded there anew, as nobody else can import it.
        sent = replace(measure, stop=None, **({"space": None} if origin else {}))  # type: ignore[arg-type]
        try:
            parcel = cloudpickle.dumps((sent, origin, settings, threads, step_s))
        except (AttributeError, pickle.PicklingError) as error:
            raise TypeError(str(error)) from error
        for process in self._all[-count:]:  # those that are taken first
            process.begin()
        for process in self._all[-count:]:  # so that no trial's time counts the start
            process.receive(parcel)

        def evaluate(trial: Trial, rng: np.random.Generator) -> Mapping[str, float]:
            where = ""
            for _ in range(ATTEMPTS):
                process = self._free.get()
                try:
                    return process.evaluate(parcel, trial, rng, stop=measure.stop or (lambda: False))
                except BrokenProcessPool as error:
                    process.close()
                    where = process.line()
                    if self._closed:
                        raise Stopped("the processes have been ended") from error
                finally:
                    self._free.put(process)
            by = where or ", perhaps killed by the system for want of memory"
            raise TrialError("crash", f"the process that trained it died {ATTEMPTS} times{by}")

        return evaluate

    def close(self) -> None:
        """Ends the processes."""
        self._closed = True
        for process in self._all:
            process.close()


def places_on(device: torch.device) -> int:
    """How many trainings are made side by side: on a CPU as many as this process has threads, else one."""
    return min(cores(), torch.get_num_threads()) if device.type == "cpu" else 1


@contextmanager
def side_by_side(device: torch.device) -> Iterator[SideBySide | None]:
    """Processes for a block, started when they are needed; None where trainings are on an accelerator."""
    if device.type != "cpu":
        yield None
        return
    with temporary_folder() as folder:
        together = SideBySide(places_on(device), folder)
        try:
            yield together
        finally:
            together.close()


class _Process:
    """A single-worker pool, so that nobody else is harmed when its process dies."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._pool: ProcessPoolExecutor | None = None
        self._pid: Future[int] | None = None
        self._parcel = b""

    def begin(self) -> ProcessPoolExecutor:
        """Starts the process, unless it is at work, and does not wait for it."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, initializer=_begin, initargs=(os.getpid(), str(self._log)))
            self._pid = self._pool.submit(os.getpid)
        return self._pool

    def receive(self, parcel: bytes) -> None:
        """Sends what is to be measured, unless it is there."""
        if parcel is not self._parcel:
            self.begin().submit(_receive, parcel).result()
            self._parcel = parcel

    def evaluate(
        self, parcel: bytes, trial: Trial, rng: np.random.Generator, *, stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        """Waits for the result; `stop` may raise, which ends the process."""
        self.receive(parcel)
        future: Future[Mapping[str, float]] = self.begin().submit(_measure, trial, rng)
        try:
            while True:
                stop()
                try:
                    return future.result(timeout=POLL_S)
                except StillAtWork:
                    continue
        except BaseException:
            if not future.done():
                self.close()
            raise

    def line(self) -> str:
        """The innermost line of the user's code at which the process crashed, if it did and one is known."""
        found = re.findall(r'File "(.+)", line (\d+) in', self._log.read_text() if self._log.exists() else "")
        users = [f" (at {file}, line {number})" for file, number in found if is_users(file)]
        return users[0] if users else ""

    def close(self) -> None:
        """Ends the process at once; what it was training is saved up to its last checkpoint."""
        if self._pool is not None and self._pid is not None:
            with suppress(ProcessLookupError, BrokenProcessPool):
                os.kill(self._pid.result(), signal.SIGKILL)
            self._pool.shutdown(wait=True)
        self._pool, self._parcel = None, b""


# -- in the process -----------------------------------------------------------------------------------

_received: list[Measure] = []


def _begin(parent: int, log: str) -> None:
    """Ctrl-C is for the parent to understand; when that is gone, nobody waits for what is trained here."""
    faulthandler.enable(Path(log).open("w"), all_threads=False)  # noqa: SIM115 - for as long as it lives
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _receive(parcel: bytes) -> None:
    measure, origin, settings, threads, step_s = pickle.loads(parcel)  # nosec B301
    torch.set_num_threads(threads)
    watch = Watch(step_s)

    def stop() -> bool:
        if torch.get_num_threads() > 1 and watch.is_slow():
            torch.set_num_threads(1)
        return False

    space = load(origin, **settings) if origin else measure.space
    _received[:] = [replace(measure, space=space, stop=stop)]


def _measure(trial: Trial, rng: np.random.Generator) -> Mapping[str, float]:
    return dict(_received[0](trial, rng))
