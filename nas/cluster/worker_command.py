"""The command that every launched worker runs, and running it as a child that is told to stop first."""

from __future__ import annotations

import os
import signal
import subprocess  # nosec B404
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nas.errors import ConfigError
from nas.storage.address import VARIABLE, Address

GRACE_S = 60.0
"""Seconds that a worker has to save what it does after it was asked to stop."""


def worker_arguments(
    run: str | None, *, storage: str | None, study: str | None, space: str | None = None
) -> list[str]:
    """What follows `nas worker`: a run's folder, or a study in a database; and the user's code, if any.

    Raises:
        ConfigError: when neither or both are given, or a password would stand in a command line.
    """
    if (run is None) == (study is None):
        raise ConfigError("launch: name the run's folder, or --study NAME with --storage URL; one of the two")
    named = {"--storage": _shown_address(storage, study), "--study": study, "--space": space}
    options = [word for name, value in named.items() if value is not None for word in (name, value)]
    return [*([os.path.abspath(run)] if run is not None else []), *options]  # noqa: PTH100 - links are kept


def _shown_address(storage: str | None, study: str | None) -> str | None:
    """The URL without its password, which workers take from their environment."""
    given = storage if storage is not None or study is None else os.environ.get(VARIABLE)
    if given is None:
        if study is not None:
            raise ConfigError(f"launch: --study needs --storage URL, or the environment variable {VARIABLE}")
        return None
    address = Address(given)
    if storage is not None and address.passwords and not address.is_masked:
        raise ConfigError(
            "launch: a password in --storage would stand in the list of processes of every machine; put the "
            f"URL into the environment variable {VARIABLE} and leave --storage out"
        )
    return str(address)


@dataclass
class Worker:
    """One worker as a child process.

    arguments: what follows `nas worker`. environment: added to that of this process.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        """The whole command line."""
        return [sys.executable, "-m", "nas", "worker", *self.arguments]

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it, in a process group of its own."""
        return subprocess.Popen(  # nosec B603
            self.command, env={**os.environ, **self.environment}, start_new_session=True
        )


def stop(child: subprocess.Popen[bytes]) -> None:
    """Asks a worker to save its trial and stop; kills it when it does not."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
