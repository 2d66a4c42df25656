"""Costs beside an evaluator's metrics: which are added, what is refused untrained, and repeatable latency."""

import dataclasses

import numpy as np
import pytest
import torch

from nas.errors import ConfigError, TrialError
from nas.evaluate import cost_metrics as module
from nas.evaluate.cost_metrics import COUNTED, TIMED, Costs, Stopwatch, free_metrics
from nas.space.cost import cost
from nas.space.latency import LatencyTable
from nas.space.loading import load
from nas.types import Trial

CPU, SHAPE = torch.device("cpu"), (1, 8, 8)
TOY = load("toy", width=4)
SKIPS, CONVS = (0, 0, 0), (2, 2, 2)
TABLE = LatencyTable(
    "a device", {f"{d.name}={o}": float(i) for d in TOY.decisions for i, o in enumerate(d.options)}, base=0.5
)


def costs(wanted, **settings):
    return Costs(TOY, SHAPE, CPU, wanted, **settings)


@pytest.fixture
def clock(monkeypatch):
    """Passes that take as long as the network has convolutions, times what the machine's `slowness` is."""

    class Clock:
        slowness, calls = 1.0, 0

        def interleaved(self, networks, x, *, repeats, warmup=10, seed=0):
            self.calls += 1
            convolutions = [sum(isinstance(m, torch.nn.Conv2d) for m in n.modules()) for n in networks]
            # Other processes delay most passes of the first network and some of the second.
            often = np.array([[0.6], [0.1]])[: len(networks)]
            delayed = np.random.default_rng(seed).random((len(networks), repeats)) < often
            return self.slowness * np.array(convolutions)[:, None] * np.where(delayed, 9.0, 1.0)

    found = Clock()
    monkeypatch.setattr(module, "interleaved", found.interleaved)
    return found


# -- what is added and refused ------------------------------------------------------------------------


def test_it_adds_what_is_wanted_and_nothing_else():
    counted = cost(TOY, CONVS, SHAPE)
    for wanted in ([], ["peak_bytes", "params"], [*COUNTED, "val_acc"]):
        expected = {name: getattr(counted, name) for name in wanted if name != "val_acc"}
        assert costs(wanted)(Trial(0, CONVS)) == expected


def test_measured_latency_comes_with_its_interval(clock):
    found = costs(["latency_ms"])(Trial(0, CONVS))
    assert found.keys() == set(TIMED)
    assert found["latency_low_ms"] <= found["latency_ms"] <= found["latency_high_ms"]
    assert found["latency_p95_ms"] > found["latency_ms"]


def test_a_table_is_looked_up_and_nothing_is_measured(clock):
    found = costs(["latency_ms"], table=TABLE)(Trial(0, (2, 1, 0)))
    assert found == {"latency_ms": 3.5}
    assert clock.calls == 0


def test_what_cannot_be_given_is_refused_at_once():
    with pytest.raises(ConfigError, match="no metric 'val_acc'"):
        costs(["val_acc"], given=["f1"])
    with pytest.raises(ConfigError, match="latency_p95_ms is wanted"):
        costs(["latency_ms", "latency_p95_ms"], table=TABLE)
    with pytest.raises(ConfigError, match="not for space 'toy'"):
        costs(["latency_ms"], table=LatencyTable("a device", {"a=b": 1.0}, base=0.0))


# -- before training ----------------------------------------------------------------------------------


def test_what_is_free():
    counted = dataclasses.asdict(cost(TOY, CONVS, SHAPE))
    assert free_metrics(TOY, CONVS, SHAPE) == counted
    assert free_metrics(TOY, CONVS, SHAPE, TABLE) == counted | {"latency_ms": 6.5}
    with pytest.raises(TrialError) as caught:
        free_metrics(TOY, CONVS, (5, 8, 8))
    assert caught.value.reason == "build"


# -- latency ------------------------------------------------------------------------------------------


def test_a_machine_that_slows_down_does_not_change_latencies(clock):
    stopwatch = Stopwatch(TOY, SHAPE, CPU)
    first = stopwatch(CONVS)["latency_ms"]
    assert first == 4.0
    clock.slowness = 3.0
    assert stopwatch(CONVS, seed=1)["latency_ms"] == pytest.approx(first)
    assert stopwatch(SKIPS, seed=2)["latency_ms"] == pytest.approx(first / 4)


def test_a_resumed_study_goes_on_at_the_same_scale(clock):
    done = Trial(0, SKIPS, state="done", metrics={"latency_ms": 10.0, "val_acc": 0.1})
    history = [Trial(1, CONVS, state="failed", reason="nan"), done]
    clock.slowness = 7.0
    measure = costs(["latency_ms"], timed=lambda: history)
    assert measure(Trial(2, CONVS))["latency_ms"] == pytest.approx(40.0)


def test_real_networks_are_timed_alike_each_time_and_in_order():
    space = load("nasbench201", width=8, cells=1)
    stopwatch = Stopwatch(space, (3, 8, 8), CPU)
    heavy, light = (3,) * 6, (1,) * 6
    state = torch.get_rng_state()
    timed = [stopwatch(genotype, seed=i)["latency_ms"] for i, genotype in enumerate((heavy, heavy, light))]
    assert torch.equal(torch.get_rng_state(), state)
    assert min(timed[:2]) > 1.5 * timed[2]
    assert timed[0] == pytest.approx(timed[1], rel=0.2)
