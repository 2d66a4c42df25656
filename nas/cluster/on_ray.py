"""Workers as Ray actors, one for each GPU that Ray has."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nas.cluster.worker_command import Worker, stop
from nas.errors import ConfigError
from nas.text import counted


class _Actor:
    """Runs a worker as a child, which dies with it. Ray shows the actor its own GPUs only."""

    def work(self, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
        """Works until the study's budget is used up; returns the exit code."""
        child = Worker(arguments, environment).start()
        try:
            return child.wait()
        finally:
            stop(child)


def run(
    arguments: Sequence[str],
    workers: int,
    *,
    gpus: float = 1.0,
    cpus: float = 1.0,
    address: str | None = None,
    environment: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = print,
) -> list[int]:
    """Runs workers on a Ray cluster until the study's budget is used up; returns their exit codes.

    gpus, cpus: that Ray reserves for each. address: of the cluster; a new one on this machine unless given.
    environment: added to that of the workers, e.g. the storage's URL.

    An actor whose machine is lost is started again elsewhere; the trial it had is taken up by any worker.

    Raises:
        ConfigError: when Ray is not installed or cannot be reached, or has fewer GPUs or cores than one
          worker needs.
    """
    ray = _ray()
    try:
        ray.init(address=address, log_to_driver=True, include_dashboard=False, ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"launch: Ray at {address!r} cannot be reached: {error}") from error
    try:
        has = ray.cluster_resources()
        for name, wanted in (("GPU", gpus), ("CPU", cpus)):
            if has.get(name, 0.0) < wanted:
                raise ConfigError(
                    f"launch: a worker wants {wanted:g} {name}, but Ray has {has.get(name, 0.0):g}; "
                    f"see --{name.lower()}s"
                )
        make = ray.remote(num_gpus=gpus, num_cpus=cpus, max_restarts=-1, max_task_retries=-1)(_Actor)
        actors = [make.remote() for _ in range(workers)]
        tell(
            f"{counted(workers, 'worker')} on Ray with {has.get('CPU', 0):g} cores and "
            f"{has.get('GPU', 0):g} GPUs"
        )
        given = dict(environment or {})
        codes: list[int] = ray.get([actor.work.remote(list(arguments), given) for actor in actors])
        return codes
    finally:
        ray.shutdown()


def environment_of_workers(names: Sequence[str]) -> dict[str, str]:
    """What workers on other machines need of this process' environment."""
    return {name: os.environ[name] for name in names if name in os.environ}


def _ray() -> Any:  # noqa: ANN401 - a module
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(
            "launch: --ray needs Ray; install it with: pip install 'nas-engine[ray]'"
        ) from error
    return ray
