"""The command `nas` in processes of its own that begin at once: a server that has imported all forks them."""

import multiprocessing
import multiprocessing.forkserver
import os
import random
import resource
import sys
import time
from pathlib import Path
from unittest import mock

import nas


def start(arguments, log, *, memory_mb=None):
    """Begins `nas ARGUMENTS` in a process whose words go into the file `log`; gives it once it has begun.

    memory_mb: what it may take beyond what it has at its beginning.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warmed"])
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(nas.__file__).parent.parent)])
    with mock.patch.dict(os.environ, {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}):
        multiprocessing.forkserver.ensure_running()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, [*map(str, arguments)], str(log), memory_mb))
    process.start()
    sender.close()
    receiver.recv()
    return process


def _work(sender, arguments, log, memory_mb):
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch

    from nas.__main__ import main

    torch.set_num_threads(1)
    sys.argv = ["nas", *arguments]
    if memory_mb is not None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory_mb * 2**20,) * 2)
    sender.send("begun")
    main()


def finish(process, timeout=120):
    """Waits for the end of a process; gives its exit code."""
    process.join(timeout)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


def run_killed(arguments, folder, log, *, kills, longest_s, seed):
    """Runs a command, killed up to `kills` times at moments drawn up to `longest_s`, then to its end.

    The first moment counts from the beginning of the run in `folder`, so that there is one kill at least.
    """
    delays, killed = random.Random(seed), 0
    while killed < kills:
        process = start(arguments, log)
        if not killed:
            wait_for(lambda p=process: (folder / "run.json").exists() or p.exitcode is not None)
        time.sleep(delays.uniform(0, longest_s) * (1 if killed else 0.3))
        process.kill()
        if (code := finish(process)) == 0:
            break
        assert code == -9, log.read_text()[-3000:]
        killed += 1
    assert killed, "the work ended before it was killed"
    assert finish(start(arguments, log)) == 0, log.read_text()[-3000:]


def wait_for(holds, seconds=60):
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come to hold"
        time.sleep(0.02)
