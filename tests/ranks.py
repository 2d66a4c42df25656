"""Several ranks on one machine, as processes of a server that has imported the libraries once."""

import contextlib
import multiprocessing
import os
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch.distributed as dist
from killing import MODULES
from torch import nn

LIMIT_S = 60.0
"""How long a rank waits for another one, on a machine that is busy with other tests."""


@dataclass
class Rank:
    """A process and what it sends: ("value", v), or ("error", its class, its text)."""

    process: multiprocessing.Process
    receiver: object
    store: dist.TCPStore

    def outcome(self, timeout=90):
        assert self.receiver.poll(timeout), "the rank neither ended nor failed"
        try:
            return self.receiver.recv()
        except EOFError:
            self.process.join()
            return "exit", self.process.exitcode


def together(target, *args, **options):
    """What `target(team, *args)` returns on each rank."""
    outcomes = [rank.outcome() for rank in started(target, *args, **options)]
    assert all(kind == "value" for kind, *_ in outcomes), outcomes
    return [value for _, value in outcomes]


def started(target, *args, size=2, limit_s=LIMIT_S):
    """The ranks at work.

    limit_s: how long they wait for each other; None for a target that joins them by itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    # As torchrun does, which outlives the ranks.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = []
    for number in range(size):
        receiver, sender = context.Pipe(duplex=False)
        environment = {
            "RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True,
        }  # fmt: skip
        process = context.Process(
            target=_work, args=(sender, environment, limit_s, target, args), daemon=True
        )
        process.start()
        sender.close()
        ranks.append(Rank(process, receiver, store))
    return ranks


def _work(sender, environment, limit_s, target, args):
    import torch

    from nas.errors import NasError, Stopped
    from nas.training.ddp import joined

    torch.set_num_threads(1)
    os.environ |= {name: str(value) for name, value in environment.items()}
    try:
        with contextlib.nullcontext() if limit_s is None else joined(limit_s=limit_s) as team:
            sender.send(("value", target(team, *args)))
    except (NasError, Stopped) as error:
        sender.send(("error", type(error).__name__, str(error)))
        raise SystemExit(1) from None


def make_plain_space(*, width=4, blocks=3, classes=3, in_channels=1):
    """A space without batch-norm, whose gradients over two halves of a batch are those over the whole."""
    from nas.space.space import Space

    def conv(kernel):
        return nn.Sequential(nn.Conv2d(width, width, kernel, padding=kernel // 2), nn.Tanh())

    def build(choose):
        options = {f"conv_{k}x{k}": partial(conv, k) for k in (1, 3)} | {"skip": nn.Identity}
        body = [choose.op(f"block{i}", options) for i in range(blocks)]
        stem = nn.Conv2d(in_channels, width, 3, padding=1)
        return nn.Sequential(stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

    return Space("plain", build)


def make_task(*, images=96, seed=0):
    """Random images of 8 x 8 pixels in three classes."""
    from nas.data.loading import task_from_arrays

    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (images, 8, 8), dtype=np.uint8)
    return task_from_arrays(x, np.arange(images) % 3, x[:12], np.arange(12) % 3, flip=False)
