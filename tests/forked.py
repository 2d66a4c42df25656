"""Workers of a job as forks of the server that has imported the libraries, in place of new processes.

For what is about a coordinator and its workers; that a worker starts from nothing is shown elsewhere.
"""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.reduction import DupFd
from types import SimpleNamespace

import pytest
from killing import MODULES

from nas.workers import start


class Descriptor:
    """A file descriptor that a process takes along when it is started."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return _taken, (DupFd(self.number),)


class Forked:
    """What `subprocess.Popen` makes of the command of a worker: as much as `nas.workers.pool` asks of it."""

    def __init__(self, command, *, stdout, env, pass_fds, **_):
        (pulse,) = pass_fds
        words = [word if word != str(pulse) else Descriptor(pulse) for word in command[len(start.COMMAND) :]]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(MODULES)
        self._process = context.Process(target=_work, args=(words, Descriptor(stdout.fileno()), env))
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        self._process.join(0)
        return self._process.exitcode


@pytest.fixture
def forked(monkeypatch):
    """Lets jobs start their workers in this way."""
    own = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(start, "subprocess", own)


def _taken(descriptor):
    return descriptor.detach()


def _work(words, said, env):
    import torch

    from nas.cli import main

    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.argv = ["nas", "worker", *map(str, words)]
    main()
