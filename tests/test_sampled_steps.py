"""Steps that sample one operation of each edge on the device: captured once, replayed with every choice."""

import dataclasses
import warnings

import pytest
import torch
from tape import Refusing, Tape
from torch import nn

pytest.importorskip("triton")

from kernels_by_torch import stand_in, tape_launches

import nas
from nas.cell import Cell
from nas.oneshot import methods
from nas.oneshot.bilevel import BilevelLoop
from nas.oneshot.fused import execution, trust
from nas.oneshot.fused.execution import unasked
from nas.oneshot.mixed import Drawn, MixedOp
from nas.oneshot.relaxations import UniformPath
from nas.oneshot.supernet import Supernet
from nas.ops import candidates
from nas.space import Space
from nas.speed.workloads import noise
from nas.training import loop as training
from nas.training.recipe import Recipe
from nas.training.resting import Resting, begin_momenta

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a tape stands in for a GPU's graphs; with one, see test_cuda"
)
RECIPE = Recipe(epochs=9, batch=8, lr=0.05, weight_decay=1e-2, clip=5.0, crop=False)
STEPS = 6
TRIED = {}


def build(choose):
    names = ["none", "skip_connect", "nor_conv_1x1", "dil_conv_3x3"]
    options = candidates(names, 4, 4)
    cell = Cell("c", 1, 2, lambda i, j: choose.op(f"{i}->{j}", options))
    return nn.Sequential(nn.Conv2d(1, 4, 1), cell, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def task():
    return noise(channels=1, side=4, images=64, device=torch.device("cpu"))


@pytest.fixture
def searching(monkeypatch, task):
    """Makes a search under a recorder, on a path."""
    stand_in(monkeypatch)
    monkeypatch.setattr(trust, "_TRIED", TRIED)

    def make(record, path, method):
        monkeypatch.setattr(training, "recorder", lambda _: record)
        monkeypatch.setattr(execution, "resolve", lambda wanted, device, *__: path)
        torch.manual_seed(0)
        supernet = Supernet(Space("small", build), relaxation=method.relaxation)
        return BilevelLoop(supernet.train(), task, dataclasses.replace(method, weights=RECIPE), seed=3)

    return make


def draws(loop):
    """The options that each step so far has drawn."""
    seen = []
    points = loop.supernet.points

    def drawn():
        rows = points()
        seen.append(rows[0])
        return rows

    loop.supernet.points = drawn
    return seen


def test_one_capture_serves_every_choice(monkeypatch, searching):
    tape, found, chosen = Tape(), [], []
    launched = tape_launches(monkeypatch, tape)
    for record in (Refusing(), tape):
        loop = searching(record, "kernels", methods.gdas())
        seen = draws(loop)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(STEPS):
                loop.advance()
                # The fourth draw is that of the captured step, and is made again by replays.
                last = seen[3] if step > 2 and record is tape else seen[-1]
                chosen.append(tuple(last.argmax(-1).tolist()))
                if step == 2:
                    launched.clear()
        found.append(list(loop._moved_by_both()))
    assert (tape.captured, tape.replayed) == (1, STEPS - 2)
    assert not launched  # nothing but replays
    assert chosen[:STEPS] == chosen[STEPS:]
    assert len(set(chosen[3:STEPS])) == STEPS - 3
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_sampled_steps_by_kernels_are_those_of_the_batched_path(searching):
    """Operations that were not drawn are neither decayed nor moved by momentum, on both."""
    found = []
    for path in ("batched", "kernels"):
        loop = searching(None, path, methods.gdas())
        for _ in range(3):
            loop.advance()
        found.append(dict(loop.supernet.state_dict()))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_a_step_never_asks_what_was_drawn(monkeypatch, searching):
    monkeypatch.setattr("nas.oneshot.supernet._item", lambda *_: pytest.fail("asked"))
    loop = searching(None, "kernels", methods.gdas())
    loop.advance()


def test_only_what_kernels_run_is_not_asked(searching):
    loop = searching(None, "kernels", methods.gdas())
    network = loop.supernet.network
    assert unasked(network)
    next(m for m in network.modules() if isinstance(m, Cell)).execute = None
    assert not unasked(network)


def test_uniform_paths_are_those_of_torch():
    rows = torch.zeros(5, 4)
    rows[:, 3] = -torch.inf
    torch.manual_seed(1)
    expected = torch.multinomial(UniformPath().expected(rows), 1).squeeze(-1)
    torch.manual_seed(1)
    assert torch.equal(UniformPath().mix(rows, 0.0).argmax(-1), expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_parameters_without_a_gradient_rest_as_if_they_had_none(momentum):
    found = []
    for rests in (False, True):
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(3, 2, 2, 2)), nn.Parameter(torch.randn(4))]
        weights[0].data = weights[0].data.to(memory_format=torch.channels_last)
        sgd = torch.optim.SGD(weights, lr=0.1, momentum=momentum, weight_decay=0.1)
        resting = Resting(weights)
        for step in range(4):
            moving = weights[step % 2]
            for weight in weights:
                weight.grad = torch.randn_like(weight) if weight is moving else None
                if rests and weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
            if rests:
                begin_momenta(sgd)
                with resting.during(sgd):
                    sgd.step()
            else:
                sgd.step()
        slots = [sgd.state[w].get("momentum_buffer") for w in weights]
        found.append([*weights, *(slot for slot in slots if slot is not None)])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_a_supernet_of_a_bundled_space_is_not_asked():
    space = nas.load("nasbench201", in_channels=1, classes=10, width=4, cells=1)
    network = Supernet(space).network
    for cell in network.modules():
        if isinstance(cell, Cell):
            cell.execute = execution.run_by_kernels
    assert unasked(network)


def test_a_cell_in_which_nothing_was_drawn_gives_zeros():
    mixture = {"d": Drawn(torch.tensor([1.0, 0.0]), lambda: 0)}
    cell = Cell("c", 1, 1, lambda *_: MixedOp("d", candidates(["none", "nor_conv_1x1"], 4, 4), mixture))
    cell.execute = execution.run
    assert not cell(torch.ones(2, 4, 3, 3)).any()
