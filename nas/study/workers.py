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
import pickle  # nosec B403 - of files that the coordinator has just written
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from numbers import Real
from pathlib import Path
from queue import LifoQueue
from typing import NamedTuple, Protocol

import cloudpickle
import loky
import numpy as np
import torch

from nas import devices
from nas.errors import ConfigError, Stopped, TrialError, describe, guard_terminal
from nas.files.atomic import write_bytes
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
            found[str(name)] = float(number)
        except OverflowError:  # an integer beyond every float
            found[str(name)] = math.inf
        if not math.isfinite(found[str(name)]):
            raise TrialError("nan", f"metric {name!r} is {found[str(name)]}, wanted a finite number")
    return found


# -- what travels --------------------------------------------------------------------------------------


def packed(evaluate: Evaluate, folder: Path) -> Path:
    """Writes an evaluator, data and all, into a file that every worker reads once; named by its content.

    Raises:
        ConfigError: when it cannot be sent to another process.
    """
    file = io.BytesIO()
    try:
        _Pickler(file).dump(evaluate)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise ConfigError(
            f"the trials cannot be sent to other processes ({error}); use --workers 0, or a space and "
            "a task that can be pickled"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"evaluator-{hashlib.sha256(file.getvalue()).hexdigest()[:16]}"
    write_bytes(path, file.getvalue())  # also where there is one, which may be anybody's
    return path


@lru_cache(maxsize=1)
def unpacked(path: Path) -> Evaluate:
    """The evaluator in a file, which a process reads once."""
    found: Evaluate = pickle.loads(path.read_bytes())  # nosec B301
    return found


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc]  # it has no types
    """Sends a space that was loaded by name as that name, since nobody else can import code of a file."""

    def reducer_override(self, obj: object) -> object:
        """See `pickle.Pickler`."""
        if isinstance(obj, Space) and obj.origin:
            return partial(load, obj.origin, **obj.settings), ()
        return super().reducer_override(obj)


def evaluated(evaluator: Path, *arguments: object) -> Outcome:
    """The outcome of a trial, in whatever process this is. arguments: the others of `measured`."""
    outcome: Callable[..., Outcome] = measured
    return outcome(unpacked(evaluator), *arguments)


def _ready(evaluator: Path) -> int:
    """The number of the process, which has the evaluator at hand now."""
    unpacked(evaluator)
    return os.getpid()


# -- the coordinator's side ----------------------------------------------------------------------------


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
        self._evaluator: Path | None = None
        self._ending = threading.Event()

    def submit(self, evaluate: Evaluate, *arguments: object) -> Future[Outcome]:
        """Begins a trial as soon as a slot is free. arguments: the others of `measured`."""
        if self._evaluator is None:
            self._evaluator = packed(evaluate, self._folder)
        return self._threads.submit(self._evaluate, self._evaluator, *arguments)

    def close(self) -> None:
        """No more trials will come; the slots may be used by others."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def end(self) -> None:
        """Ends all trials under way at once; what they had saved stays."""
        self._ending.set()
        for slot in self._slots:
            slot.end()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _evaluate(self, evaluator: Path, *arguments: object) -> Outcome:
        slot = self._free.get()
        start, lost, late, why = time.monotonic(), 0, 0, ""
        try:
            while lost < ATTEMPTS and late < 2:
                try:
                    found = self._waited(slot, evaluator, arguments)
                except (Stopped, ConfigError):
                    raise
                except Exception as error:  # of whatever engine runs it: the worker is lost
                    if self._ending.is_set():
                        raise Stopped("the workers have been ended") from error
                    lost, why = lost + 1, describe(error)
                else:
                    if found is None:
                        late += 1
                    elif isinstance(found.found, TrialError) and found.found.reason == "device":
                        lost, why = lost + 1, str(found.found)  # that process can compute nothing more
                    else:
                        return found
                slot.end()
        except BaseException:
            slot.end()
            raise
        finally:
            self._free.put(slot)
        failed = TrialError("crash", f"its worker was lost {ATTEMPTS} times: {why}")
        if late == 2:
            failed = TrialError("timeout", f"longer than {self._timeout_s:g} s, twice")
        return Outcome(failed, time.monotonic() - start)

    def _waited(self, slot: Slot, evaluator: Path, arguments: Sequence[object]) -> Outcome | None:
        """What came of a trial; None where it takes longer than it may."""
        future, began = slot.submit(evaluator, *arguments), time.monotonic()
        while not wait([future], timeout=POLL_S).done:
            if self._stop() or self._ending.is_set():
                raise Stopped("the workers have been ended")
            if self._timeout_s is not None and time.monotonic() - began > self._timeout_s:
                return None
        return future.result()


class Borrowed:
    """A slot of an executor that somebody else runs; what it is at can only be asked to end."""

    def __init__(self, executor: Executor) -> None:
        self._submit: Callable[..., Future[Outcome]] = executor.submit
        self._future: Future[Outcome] | None = None

    def submit(self, evaluator: Path, *arguments: object) -> Future[Outcome]:
        """Begins a trial."""
        self._future = self._submit(evaluated, evaluator, *arguments)
        return self._future

    def end(self) -> None:
        """Asks for the end of what runs there; the slot can be used again."""
        if self._future is not None:
            self._future.cancel()


# -- processes of this machine -------------------------------------------------------------------------


class Process:
    """A slot of this machine: a process of its own, begun when it is needed.

    gpu: what `CUDA_VISIBLE_DEVICES` shall be; None leaves it. threads: that it computes with.

    By loky, whose processes do not import the user's main program: it needs no guard. One that crashes leaves
    its stack on standard error.
    """

    def __init__(self, *, gpu: str | None = None, threads: int = 1) -> None:
        self._threads = threads
        self._env = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        if gpu is not None:
            self._env["CUDA_VISIBLE_DEVICES"] = gpu
        self._pool: loky.ProcessPoolExecutor | None = None
        self._pid: Future[int] | None = None

    def submit(self, evaluator: Path, *arguments: object) -> Future[Outcome]:
        """Begins a trial, in a new process where there is none."""
        if self._pool is None:
            own = (os.getpid(), self._threads)
            self._pool = loky.ProcessPoolExecutor(1, env=self._env, initializer=_begin, initargs=own)
            self._pid = self._pool.submit(_ready, evaluator)
            self._pid.result()  # so that no trial's time counts the start and the reading of data
        found: Future[Outcome] = self._pool.submit(evaluated, evaluator, *arguments)
        return found

    def end(self) -> None:
        """Kills the process; the next trial begins another one."""
        if self._pool is not None and self._pid is not None:
            with suppress(ProcessLookupError, Exception):
                os.kill(self._pid.result(), signal.SIGKILL)
            self._pool.shutdown(wait=True)
        self._pool = self._pid = None


def _begin(parent: int, threads: int) -> None:
    """Ctrl-C is for the parent to understand; when that is gone, nobody waits for what is trained here."""

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGKILL)

    guard_terminal()
    faulthandler.enable(2, all_threads=False)  # standard error
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    threading.Thread(target=end_with_parent, daemon=True).start()


Slot = Borrowed | Process
"""A place where one trial is evaluated at a time; the future of a trial raises where its worker is lost."""


class Processes:
    """Processes of this machine that begin when they are needed, and end together.

    device: as in `--device`. gpus: see `gpus_of`; empty on a CPU.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.gpus = gpus_of(device)
        self._all: dict[tuple[int, int], Process] = {}

    def slots(self, count: int, *, threads: int = 1) -> list[Process]:
        """So many of them, each of which computes with so many threads."""
        for number in range(count):
            gpu = self.gpus[number % len(self.gpus)] if self.gpus else None
            self._all.setdefault((number, threads), Process(gpu=gpu, threads=threads))
        return [self._all[number, threads] for number in range(count)]

    def close(self) -> None:
        """Kills them."""
        for process in self._all.values():
            process.end()


def places_on(device: torch.device) -> int:
    """How many trainings are made side by side: on a CPU as many as this process has threads, else one."""
    return min(cores(), torch.get_num_threads()) if device.type == "cpu" else 1


def at_a_time(workers: int | str, gpus: Sequence[str]) -> int:
    """How many trials are evaluated side by side: with `auto` as many as GPUs, or cores without one."""
    return int(workers or 1) if workers != "auto" else len(gpus) or cores()


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
    return int(loky.cpu_count())
