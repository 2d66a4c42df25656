"""Executors of engines that users already run: Ray, Dask and, by submitit, SLURM; each is an extra.

Lost nodes, joining, shares of a GPU and dashboards are theirs; only the coordinator counts attempts. The
run's folder must be on a file system that all machines see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas.errors import ConfigError, unknown

KINDS = {
    "ray": "ray, or ray://HOST:PORT",
    "dask": "dask://HOST:PORT",
    "slurm": "slurm:OPTION=VALUE,..., e.g. slurm:partition=gpu,gpus_per_node=1,time=240",
    "local-slurm": "local-slurm, submitit's processes of this machine",
}
_SHORT = {"time": "timeout_min", "partition": "slurm_partition", "account": "slurm_account"}
"""Options of SLURM by the names that submitit gives them."""


@contextmanager
def cluster(spec: str, folder: Path, *, gpus: float) -> Iterator[Executor]:
    """The executor that a setting names, for a block.

    spec: one of `KINDS`. folder: where SLURM's jobs leave what they say. gpus: that a trial needs.

    Raises:
        ConfigError: when there is no such engine, it is not installed, or it cannot be reached.
    """
    kind = spec.partition(":")[0]
    if kind not in KINDS:
        raise ConfigError(f"executor: {unknown('kind', kind, KINDS)}; wanted {', '.join(KINDS.values())}")
    try:
        if kind == "ray":
            import ray

            if not ray.is_initialized():
                ray.init(address=spec if "://" in spec else None, log_to_driver=False)
            yield _Ray(gpus)
        elif kind == "dask":
            from distributed import Client

            address = spec.removeprefix("dask://")
            with Client(f"tcp://{address}" if address != "dask" else None) as client:
                resources = {"GPU": gpus} if gpus else {}
                yield client.get_executor(pure=False, retries=0, resources=resources)
        else:
            with _Slurm(spec, folder, gpus) as executor:
                yield executor
    except ImportError as error:
        extra = "slurm" if "slurm" in kind else kind
        raise ConfigError(
            f"executor {spec!r} needs {error.name or kind}: pip install 'nas-engine[{extra}]'"
        ) from error


class _Ray(Executor):
    """Calls as tasks of Ray, which it does not try again by itself."""

    def __init__(self, gpus: float) -> None:
        import ray

        self._call = ray.remote(_called).options(num_cpus=1, num_gpus=gpus, max_retries=0)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """As `Executor.submit`."""
        found: Future[Any] = self._call.remote(fn, args, kwargs).future()
        return found


def _called(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    return fn(*args, **kwargs)


class _Slurm(ThreadPoolExecutor):
    """Calls as jobs of SLURM, each in the queue by itself; a thread waits for each of them."""

    def __init__(self, spec: str, folder: Path, gpus: float) -> None:
        import submitit

        super().__init__(256, thread_name_prefix="slurm")
        kind, _, options = spec.partition(":")
        settings: dict[str, Any] = {"timeout_min": 60, **({"gpus_per_node": int(gpus)} if gpus else {})}
        for option in filter(None, options.split(",")):
            name, found, value = option.partition("=")
            if not found:
                raise ConfigError(f"executor {spec!r}: {option!r} is no OPTION=VALUE; e.g. {KINDS['slurm']}")
            settings[_SHORT.get(name, name)] = int(value) if value.isdigit() else value
        engine = "local" if kind == "local-slurm" else kind
        self._executor = submitit.AutoExecutor(folder / "slurm", cluster=engine)
        self._executor.update_parameters(**settings)
        self._jobs: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """As `Executor.submit`."""
        job = self._executor.submit(fn, *args, **kwargs)
        self._jobs.append(job)
        return super().submit(job.result)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Cancels what still waits or runs."""
        for job in self._jobs:
            if not job.done():
                job.cancel()
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
