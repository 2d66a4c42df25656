"""Kills a computation with SIGKILL at random moments and starts it again, until it has finished."""

import multiprocessing
import random
import time

MODULES = [
    *("numpy", "torch", "torch._dynamo", "torch.fx.experimental.symbolic_shapes", "torch.distributed"),
    *("networkx", "optuna", "scipy.optimize", "scipy.stats", "sklearn.datasets", "pytest", "typer.testing"),
    *("nas.__main__", "nas.training.ddp", "nas.oneshot.search", "nas.run.pipeline"),
    *("nas.run.calibrate", "nas.show.report", "nas.study.workers"),
    "matplotlib.backends.backend_agg",
]
"""All that any process imports: one server forks the processes of every test, and is started but once."""


def run_killed(target, *args, kills, longest_s, seed):
    """Runs `target(*args)` in processes of their own, up to `kills` of them killed; the last one ends.

    Each lives for a random time of up to `longest_s` once its work has begun. Where a machine is faster than
    it was a moment ago the work may end before the last kill, but not before the first.
    A server that has imported the libraries once, and computed nothing, forks the processes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    delays, killed = random.Random(seed), 0
    while killed < kills:
        process, began = _start(context, target, args)
        began.recv()
        time.sleep(delays.uniform(0, longest_s))
        process.kill()
        process.join()
        assert process.exitcode in (-9, 0), f"the work failed: exit code {process.exitcode}"
        if process.exitcode == 0:
            break
        killed += 1
    assert killed, "the work ended before it was killed"
    process, _ = _start(context, target, args)
    process.join()
    assert process.exitcode == 0


def _start(context, target, args):
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, target, args))
    process.start()
    sender.close()
    return process, receiver


def _work(sender, target, args):
    import torch

    torch.set_num_threads(1)
    sender.send("begun")
    target(*args)
