"""Where trials are evaluated, several at a time: processes of this machine, or any executor.

The coordinator alone asks, tells and writes; a worker computes. A process that dies takes nothing with it but
the trial that it was at, which goes on from its checkpoint in another one.
"""

from __future__ import annotations

import faulthandler
import hashlib
import io
import math
import os
import pickle  # nosec B403 - of files whose digest the coordinator tells
import re
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from queue import LifoQueue
from typing import NamedTuple, Protocol

import cloudpickle
import numpy as np
import torch
from loky import ProcessPoolExecutor

from nas import devices
from nas.errors import ConfigError, Stopped, TrialError, describe, is_users
from nas.files.atomic import temporary_folder, write_bytes
from nas.space.loading import load
from nas.space.space import Space
from nas.types import Trial
from nas.user_code import user_errors

ATTEMPTS = 3
"""So many workers a trial may take with it before it has failed."""
POLL_S = 0.2

Evaluate = Callable[..., Mapping[str, float]]
"""An `Evaluator` that takes hints, by name, too."""


class Evaluator(Protocol):
    """Measures one trial; depends on nothing but its arguments. Raises TrialError when the trial fails."""

    def __call__(self, trial: Trial, rng: np.random.Generator, /) -> Mapping[str, float]:
        """The metrics of a trial by name."""


@dataclass(frozen=True)
class Measure:
    """How trials are measured: by an evaluator, which may run elsewhere, and by what the coordinator adds.

    evaluate: measures a trial; takes what `hints` gives by name, too.
    hints: what a trial is to be told of those that were known when it was proposed.
    refuses: why a trial is not to be evaluated, given those that had ended when it was proposed; None else.
    costs: metrics that are counted or timed here; they replace the evaluator's own.
    """

    evaluate: Evaluate
    hints: Callable[[Trial, Sequence[Trial]], Mapping[str, object]] = lambda *_: {}
    refuses: Callable[[Trial, Sequence[Trial]], TrialError | None] = lambda *_: None
    costs: Callable[[Trial], Mapping[str, float]] = lambda _: {}


class Outcome(NamedTuple):
    """found: the metrics of a trial, or why it failed. cost_s: seconds that it took. worker: who did it."""

    found: Mapping[str, float] | TrialError
    cost_s: float
    worker: str = ""


def measured(
    evaluate: Evaluate, trial: Trial, rng: np.random.Generator, hints: Mapping[str, object]
) -> Outcome:
    """Evaluates a trial, whose failure is an outcome like another."""
    start = time.perf_counter()
    try:
        with user_errors():
            found: Mapping[str, float] | TrialError = check_metrics(evaluate(trial, rng, **hints))
    except TrialError as error:
        found = error
    return Outcome(found, time.perf_counter() - start, f"{socket.gethostname()}, process {os.getpid()}")


def check_metrics(metrics: object) -> dict[str, float]:
    """Plain finite floats from what an evaluator returned: numpy scalars and 0-dim tensors are converted.

    Raises:
        TrialError: with reason `metric` (`nan` for values that are not finite), naming the metric and type.
    """
    if not isinstance(metrics, Mapping):
        raise TrialError(
            "metric", f"the evaluator returned {type(metrics).__name__}, wanted a dictionary of numbers"
        )
    found = {}
    for name, value in metrics.items():
        item = getattr(value, "item", None)
        number = item() if item is not None and getattr(value, "ndim", None) == 0 else value
        if isinstance(number, bool) or not isinstance(number, Real):
            raise TrialError("metric", f"metric {name!r} is a {type(value).__name__}, wanted a number")
        try:
            converted = float(number)
        except OverflowError:  # an integer beyond every float
            converted = math.inf
        if not math.isfinite(converted):
            raise TrialError("nan", f"metric {name!r} is {converted}, wanted a finite number")
        found[str(name)] = converted
    return found


# -- what travels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parcel:
    """An evaluator in a file that every worker can read; it is unpacked once in a process.

    digest: SHA-256 of the file, without which it is not read.
    """

    path: Path
    digest: str

    @classmethod
    def packed(cls, evaluate: Evaluate, folder: Path) -> Parcel:
        """Writes the file.

        Raises:
            ConfigError: when the evaluator cannot be sent to another process.
        """
        file = io.BytesIO()
        try:
            _Pickler(file).dump(evaluate)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise ConfigError(
                f"the trials cannot be sent to other processes ({error}); use --workers 0, or a space and "
                "a task that can be pickled"
            ) from error
        digest = hashlib.sha256(file.getvalue()).hexdigest()
        path = folder / f"evaluator-{digest[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_bytes(path, file.getvalue())
        return cls(path, digest)

    def unpacked(self) -> Evaluate:
        """The evaluator, from the file where this process has not read it before."""
        if self.digest not in _unpacked:
            content = self.path.read_bytes()
            if hashlib.sha256(content).hexdigest() != self.digest:
                raise ConfigError(f"{self.path} is not what the coordinator wrote")
            _unpacked.clear()
            _unpacked[self.digest] = pickle.loads(content)  # nosec B301
        return _unpacked[self.digest]


_unpacked: dict[str, Evaluate] = {}


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]  # it has no types
    """Sends a space that was loaded by name as that name, since nobody else can import code of a file."""

    def reducer_override(self, obj: object) -> object:
        """See `pickle.Pickler`."""
        if isinstance(obj, Space) and obj.origin:
            return partial(load, obj.origin, **obj.settings), ()
        return super().reducer_override(obj)


def evaluated(parcel: Parcel, trial: Trial, rng: np.random.Generator, hints: Mapping[str, object]) -> Outcome:
    """The outcome of a trial, in whatever process this is."""
    return measured(parcel.unpacked(), trial, rng, hints)


# -- the coordinator's side ----------------------------------------------------------------------------


class Slot(ABC):
    """A place where one trial is evaluated at a time."""

    @abstractmethod
    def submit(self, parcel: Parcel, *arguments: object) -> Future[Outcome]:
        """Begins a trial. The future raises where the worker is lost, not where the trial fails."""

    @abstractmethod
    def end(self) -> None:
        """Ends at once what it is at; it can be used again."""

    def last_words(self) -> str:
        """What is known of why its worker was lost, beside what the future raises."""
        return ""


class Workers:
    """Evaluates as many trials of one evaluator at a time as there are slots.

    folder: where evaluators are left for the workers.
    ordered: whether proposals follow the order of trials, see `Study.run`.
    timeout_s: a trial that takes longer is begun once more, and then fails; None for no limit.
    stop: asked all the while; may raise, upon which the trials under way are ended.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        folder: Path,
        *,
        ordered: bool = True,
        timeout_s: float | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.count, self.ordered = len(slots), ordered
        self._slots, self._folder, self._timeout_s, self._stop = list(slots), folder, timeout_s, stop
        self._free: LifoQueue[Slot] = LifoQueue()
        for slot in slots:
            self._free.put(slot)
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="trial")
        self._parcel: Parcel | None = None
        self._ending = threading.Event()

    def submit(self, evaluate: Evaluate, *arguments: object) -> Future[Outcome]:
        """Begins a trial as soon as a slot is free. arguments: the others of `measured`."""
        if self._parcel is None:
            self._parcel = Parcel.packed(evaluate, self._folder)
        return self._threads.submit(self._evaluate, self._parcel, *arguments)

    def close(self) -> None:
        """No more trials will come; the slots may be used by others."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def end(self) -> None:
        """Ends all trials under way at once; what they had saved stays."""
        self._ending.set()
        for slot in self._slots:
            slot.end()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _evaluate(self, parcel: Parcel, *arguments: object) -> Outcome:
        slot = self._free.get()
        start, lost, late, why = time.monotonic(), 0, 0, ""
        try:
            while lost < ATTEMPTS and late < 2:
                try:
                    outcome = self._waited(slot, parcel, arguments)
                except _Late:
                    late += 1
                except (Stopped, ConfigError):
                    raise
                except Exception as error:  # of whatever engine runs it: the worker is lost
                    if self._ending.is_set():
                        raise Stopped("the workers have been ended") from error
                    lost, why = lost + 1, slot.last_words() or describe(error)
                else:
                    found = outcome.found
                    if not isinstance(found, TrialError) or found.reason != "device":
                        return outcome
                    lost, why = lost + 1, str(found)  # nothing more can be computed in that process
                slot.end()
        except BaseException:
            slot.end()
            raise
        finally:
            self._free.put(slot)
        spent_s = time.monotonic() - start
        if late == 2:
            return Outcome(TrialError("timeout", f"longer than {self._timeout_s:g} s, twice"), spent_s)
        return Outcome(TrialError("crash", f"its worker was lost {ATTEMPTS} times: {why}"), spent_s)

    def _waited(self, slot: Slot, parcel: Parcel, arguments: Sequence[object]) -> Outcome:
        future, began = slot.submit(parcel, *arguments), time.monotonic()
        while True:
            if self._stop() or self._ending.is_set():
                raise Stopped("the workers have been ended")
            if wait([future], timeout=POLL_S).done:
                return future.result()
            if self._timeout_s is not None and time.monotonic() - began > self._timeout_s:
                raise _Late


class _Late(Exception):
    """A trial takes longer than it may."""


class Borrowed(Slot):
    """A slot of an executor that somebody else runs; what it is at can only be asked to end."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._future: Future[Outcome] | None = None

    def submit(self, parcel: Parcel, *arguments: object) -> Future[Outcome]:
        """Begins a trial."""
        submit: Callable[..., Future[Outcome]] = self._executor.submit
        self._future = submit(evaluated, parcel, *arguments)
        return self._future

    def end(self) -> None:
        """Asks for the end of what runs there."""
        if self._future is not None:
            self._future.cancel()


# -- processes of this machine -------------------------------------------------------------------------


class Process(Slot):
    """A slot of this machine: a process of its own, begun when it is needed.

    gpu: what `CUDA_VISIBLE_DEVICES` shall be; None leaves it. threads: that it computes with.
    log: where it leaves, when it crashes, at which line.

    By loky, whose processes do not import the user's main program: it needs no guard.
    """

    def __init__(self, log: Path, *, gpu: str | None = None, threads: int = 1) -> None:
        self._log, self._threads = log, threads
        self._env = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        if gpu is not None:
            self._env["CUDA_VISIBLE_DEVICES"] = gpu
        self._pool: ProcessPoolExecutor | None = None
        self._pid: Future[int] | None = None

    def submit(self, parcel: Parcel, *arguments: object) -> Future[Outcome]:
        """Begins a trial, in a new process where there is none."""
        if self._pool is None:
            own = (os.getpid(), str(self._log), self._threads)
            self._pool = ProcessPoolExecutor(1, env=self._env, initializer=_begin, initargs=own)
            self._pid = self._pool.submit(_unpacked_by, parcel)
            self._pid.result()  # so that no trial's time counts the start and the reading of data
        found: Future[Outcome] = self._pool.submit(evaluated, parcel, *arguments)
        return found

    def last_words(self) -> str:
        """The innermost line of the user's code at which the process crashed, if one is known."""
        found = re.findall(r'File "(.+)", line (\d+) in', self._log.read_text() if self._log.exists() else "")
        users = [f"it crashed at {file}, line {number}" for file, number in found if is_users(file)]
        return users[0] if users else "it died, perhaps killed by the system for want of memory"

    def end(self) -> None:
        """Kills the process."""
        if self._pool is not None and self._pid is not None:
            with suppress(ProcessLookupError, Exception):
                os.kill(self._pid.result(), signal.SIGKILL)
            self._pool.shutdown(wait=True)
        self._pool = self._pid = None


def _unpacked_by(parcel: Parcel) -> int:
    """The number of the process that has the evaluator at hand now."""
    parcel.unpacked()
    return os.getpid()


def _begin(parent: int, log: str, threads: int) -> None:
    """Ctrl-C is for the parent to understand; when that is gone, nobody waits for what is trained here."""
    faulthandler.enable(Path(log).open("w"), all_threads=False)  # noqa: SIM115 - for as long as it lives
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)


class Processes:
    """Processes of this machine that begin when they are needed, and end together.

    folder: where they leave, when they crash, at which line.
    gpus: what `CUDA_VISIBLE_DEVICES` shall be, one after the other; empty on a CPU.
    """

    def __init__(self, folder: Path, gpus: Sequence[str]) -> None:
        self._folder, self.gpus = folder, list(gpus)
        self._all: dict[tuple[int, int], Process] = {}

    def slots(self, count: int, *, threads: int = 1) -> list[Process]:
        """So many of them, each of which computes with so many threads."""
        for number in range(count):
            if (number, threads) not in self._all:
                gpu = self.gpus[number % len(self.gpus)] if self.gpus else None
                log = self._folder / f"process-{number}-{threads}.txt"
                self._all[number, threads] = Process(log, gpu=gpu, threads=threads)
        return [self._all[number, threads] for number in range(count)]

    def end(self) -> None:
        """Kills them."""
        for process in self._all.values():
            process.end()


@contextmanager
def processes_on(device: str) -> Iterator[Processes]:
    """Processes for a block. device: as in `--device`."""
    with temporary_folder() as folder:
        found = Processes(folder, gpus_of(device))
        try:
            yield found
        finally:
            found.end()


def places_on(device: torch.device) -> int:
    """How many trainings are made side by side: on a CPU as many as this process has threads, else one."""
    return min(cores(), torch.get_num_threads()) if device.type == "cpu" else 1


def gpus_of(device: str) -> list[str]:
    """What processes on a device (`auto`, `cpu`, `cuda`, `cuda:1`) put in `CUDA_VISIBLE_DEVICES`.

    Raises:
        ConfigError: for a device that processes cannot share out.
    """
    resolved = devices.resolve(device)
    if resolved.type == "cpu":
        return []
    if resolved.type != "cuda":
        raise ConfigError(f"workers compute on cpu or cuda, got device {device!r}; set workers to 0")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",") if name.strip()]
    names = names or [str(number) for number in range(torch.cuda.device_count())]
    return [names[resolved.index]] if ":" in device else names


def cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1
