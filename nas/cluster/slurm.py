"""Workers as an array of SLURM jobs, through submitit (Meta's launcher)."""

from __future__ import annotations

import shlex
import subprocess  # nosec B404
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.cluster.worker_command import GRACE_S, Worker, stop
from nas.errors import ConfigError

_SIGNAL_S = int(GRACE_S) + 60
"""Seconds before the end of its time at which SLURM tells a job so."""


@dataclass(frozen=True)
class Wishes:
    """What each job of the array asks SLURM for.

    minutes: of wall time; a job that reaches it is queued again, up to `requeues` times.
    gpus, cpus: of each. memory_gb: 0 for the partition's own. at_once: jobs that run at the same time.
    partition, account: the cluster's own unless given. others: further `#SBATCH` lines by name.
    """

    minutes: int = 24 * 60
    gpus: int = 1
    cpus: int = 8
    memory_gb: int = 0
    at_once: int = 256
    partition: str | None = None
    account: str | None = None
    requeues: int = 100
    others: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for name, least in (("minutes", 3), ("gpus", 0), ("cpus", 1), ("memory_gb", 0), ("at_once", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"launch: {name} is {getattr(self, name)}, but must be at least {least}")

    def parameters(self) -> dict[str, Any]:
        """By submitit's names."""
        wanted = {
            "job_name": "nas-worker",
            "time": self.minutes,
            "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus,
            "mem": f"{self.memory_gb}GB" if self.memory_gb else None,
            "array_parallelism": self.at_once,
            "partition": self.partition,
            "account": self.account,
            "signal_delay_s": _SIGNAL_S,
            "additional_parameters": dict(self.others) if self.others else None,
        }
        return {name: value for name, value in wanted.items() if value is not None}


class SlurmWorker(Worker):
    """A worker that SLURM may queue again when its time is over: what it did is in the study."""

    def __call__(self) -> int:
        """Works until the study's budget is used up; returns the exit code."""
        self._child: subprocess.Popen[bytes] = self.start()
        return self._child.wait()

    def checkpoint(self) -> Any:  # noqa: ANN401 - submitit's
        """Called by submitit when the time is over: stops the worker, and says what is queued again."""
        from submitit.helpers import DelayedSubmission

        if (child := getattr(self, "_child", None)) is not None:  # the time may be over before it was started
            stop(child)
        return DelayedSubmission(type(self)(self.arguments, self.environment))


def script(arguments: Sequence[str], workers: int, wishes: Wishes, logs: Path) -> str:
    """The batch script that `submit` hands to SLURM, in which submitit runs the worker's command."""
    with _needing_submitit():
        from submitit.slurm.slurm import _make_sbatch_string
    text: str = _make_sbatch_string(
        command=f"# in each job: {shlex.join(Worker(arguments).command)}\n{_launcher(logs)}",
        folder=logs,
        map_count=workers,
        use_srun=False,
        **wishes.parameters(),
    )
    return text


def submit(arguments: Sequence[str], workers: int, wishes: Wishes, logs: Path) -> list[str]:
    """Submits an array of workers; returns the numbers of its jobs.

    logs: a folder that all machines see, for the workers' output.

    Raises:
        ConfigError: when this machine has no SLURM, or SLURM refuses.
    """
    with _needing_submitit():
        import submitit
    try:
        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=wishes.requeues)
    except RuntimeError as error:
        raise ConfigError(
            f"launch: this machine has no SLURM ({error}); see it first with --dry-run"
        ) from error
    executor.update_parameters(**wishes.parameters())
    try:
        with executor.batch():
            jobs = [executor.submit(SlurmWorker(list(arguments))) for _ in range(workers)]
    except submitit.core.utils.FailedJobError as error:
        raise ConfigError(f"launch: SLURM refuses: {str(error).strip().splitlines()[-1]}") from error
    return [str(job.job_id) for job in jobs]


def _launcher(logs: Path) -> str:
    return shlex.join([Worker(()).command[0], "-u", "-m", "submitit.core._submit", str(logs)])


@contextmanager
def _needing_submitit() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            "launch: --slurm needs submitit; install it with: pip install 'nas-engine[slurm]'"
        ) from error
