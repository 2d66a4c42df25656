"""How many launches of kernels and calls of the library a step of DARTS by kernels takes.

In a CUDA graph each costs some microseconds, of which a step of small maps mostly consists. The kernels
compute nothing here.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from tape import Calls, Refusing

pytest.importorskip("triton")

from kernels_by_torch import PROGRAMS

import nas
from nas.oneshot import methods
from nas.oneshot.bilevel import BilevelLoop
from nas.oneshot.fused import execution, trust
from nas.oneshot.supernet import Supernet
from nas.speed.workloads import noise
from nas.training import loop as training

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="counts programs of Triton; on a GPU depthwise ones are CUDA C++"
)


class Idle:
    """Programs that do nothing, of which each launch is counted."""

    def __init__(self, counts):
        self.counts = counts

    def __getattr__(self, name):
        return _Launch(name, self.counts)


class _Launch:
    def __init__(self, name, counts):
        self.name, self.counts = name, counts

    def __getitem__(self, _):
        return lambda *_, **__: self.counts.update([self.name])


@pytest.fixture
def step(monkeypatch):
    """A step of DARTS, of the alphas and then of the weights, as it is captured on a GPU, and its counts."""
    launched, calls = Counter(), Calls()
    for module, name in PROGRAMS:
        monkeypatch.setattr(module, name, Idle(launched))
    monkeypatch.setattr(trust, "_tried", lambda *_: True)
    monkeypatch.setattr(execution, "resolve", lambda *_: "kernels")
    monkeypatch.setattr(training, "recorder", lambda _: Refusing())
    task = noise(channels=3, side=32, images=16, device=torch.device("cpu"))
    space, method = nas.load("darts", in_channels=3, classes=10, width=16, cells=8), methods.darts()
    method = replace(method, weights=replace(method.weights, batch=4, precision="bfloat16"))
    supernet = Supernet(space, relaxation=method.relaxation).to(memory_format=torch.channels_last)
    loop = BilevelLoop(supernet.train(), task, method, seed=0)
    loop.advance()  # momenta and plans are made

    def counted():
        loop.passes.follow()
        loop._begin_both()
        launched.clear()
        with calls:
            loop._move_both()
        return launched, calls.counts

    return counted


def test_a_step_takes_few_launches_and_calls(step):
    launched, calls = step()
    assert launched.total() == 1298
    assert calls.total() <= 255, calls
