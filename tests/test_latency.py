"""Latency: side by side in shuffled rounds, and tables that are read, fitted and refused."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.errors import ConfigError, TrialError
from nas.space import latency as module
from nas.space.graph import architecture_hash
from nas.space.latency import (
    Latency,
    LatencyTable,
    fit_table,
    interleaved,
    latencies,
    measure_table,
)
from nas.space.loading import load

CPU = torch.device("cpu")
TOY = load("toy", width=4)


class Logged(nn.Module):
    """Writes its name into a log whenever it runs."""

    def __init__(self, name, log):
        super().__init__()
        self.name, self.log = name, log

    def forward(self, x):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.log.append(self.name)
        return x


# -- measured -----------------------------------------------------------------------------------------


def test_latency_is_ordered_and_leaves_the_network_as_it_was():
    network = TOY.network((2, 2, 2)).train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    (found,) = latencies([network], torch.randn(4, 1, 16, 16), repeats=20, warmup=3)
    assert 0 < found.low_ms <= found.p50_ms <= found.high_ms
    assert found.p50_ms <= found.p95_ms and found.p50_ms < 1000
    assert [part.training for part in network] == [True, False, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_every_round_runs_every_network_once_in_an_order_of_its_own():
    log = []
    networks = [Logged(name, log) for name in "abcde"]
    times = interleaved(networks, torch.zeros(1), repeats=30, warmup=4, seed=1)
    assert times.shape == (5, 30)
    rounds = list(zip(*[iter(log)] * 5, strict=True))
    assert len(rounds) == 34
    assert all(sorted(one) == list("abcde") for one in rounds)
    assert len(set(rounds)) > 20
    assert {one[0] for one in rounds} == set("abcde")


def test_times_belong_to_their_networks_and_the_warm_up_is_left_out(monkeypatch):
    calls = []

    def timed(network, x):
        calls.append(network.name)
        return {"a": 1.0, "b": 20.0}[network.name] + 1000 * (len(calls) <= 2 * 3)

    monkeypatch.setattr(module, "_timed", timed)
    networks = [Logged("a", []), Logged("b", [])]
    slow, fast = latencies(networks[::-1], torch.zeros(1), repeats=7, warmup=3)
    assert slow == Latency(20.0, 20.0, 20.0, 20.0)
    assert fast == Latency(1.0, 1.0, 1.0, 1.0)


# -- looked up ----------------------------------------------------------------------------------------


def planted(space, seed=0):
    """An additive table of random entries."""
    draw = np.random.default_rng(seed)
    entries = {f"{d.name}={o}": float(draw.random()) for d in space.decisions for o in d.options}
    return LatencyTable("a made-up device", entries, base=0.7)


@pytest.mark.parametrize(
    "table",
    [
        LatencyTable("a device", {"0->1=skip_connect": 0.0, "0->1=nor_conv_3x3": 1.25}, base=0.5, error=0.03),
        LatencyTable("a device", {"0123456789abcdef": 1e-3}),
    ],
)
def test_a_table_reads_as_it_was_written(table, tmp_path):
    table.write(tmp_path / "table.json")
    assert LatencyTable.read(tmp_path / "table.json") == table


GOOD = {"unit": "ms", "device": "phone", "base": 1.0, "entries": {"a": 3.0}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "s"}, "unit"),
        ({"device": None}, "device"),
        ({"entries": {}}, "entries"),
        ({"entries": [1, 2]}, "entries"),
        ({"entries": {"a": "3"}}, r"entries\.a"),
        ({"entries": {"a": True}}, r"entries\.a"),
        ({"entries": {"a": -1}}, r"entries\.a"),
        ({"entries": {"a": 10**400}}, "integer of more than 64 bits"),
        ({"base": "much"}, "base"),
        ({"bas": 1.0}, "bas"),
    ],
)
def test_a_file_that_is_no_table_is_refused(change, message, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ConfigError, match=message) as caught:
        LatencyTable.read(path)
    assert str(path) in str(caught.value)


def test_an_additive_table_adds_up():
    table = planted(TOY)
    names = ["0->1=nor_conv_3x3", "0->2=skip_connect", "1->2=avg_pool_3x3"]
    assert table.predict(TOY, (2, 0, 1)) == pytest.approx(0.7 + sum(table.entries[name] for name in names))


def test_a_table_by_architecture_knows_its_notation_and_its_hash():
    space = load("nasbench201", width=4, cells=1)
    first, second, third = (3, 2, 1, 0, 4, 1), (1, 1, 1, 1, 1, 1), (2, 2, 2, 2, 2, 2)
    entries = {space.notation.write(first): 1.5, architecture_hash(space, second): 2.5}
    table = LatencyTable("a device", entries)
    assert table.predict(space, first) == 1.5
    assert table.predict(space, second) == 2.5
    with pytest.raises(TrialError, match=r"a device has no entry .*nor_conv_1x1~0") as caught:
        table.predict(space, third)
    assert caught.value.reason == "missing"


# -- fitted -------------------------------------------------------------------------------------------


def test_a_fit_finds_a_planted_table():
    space = load("nasbench201", width=4, cells=1)
    table, draw = planted(space), np.random.default_rng(1)
    genotypes = [space.sample(draw) for _ in range(80)]
    ms = np.array([table.predict(space, genotype) for genotype in genotypes])
    fitted = fit_table(space, genotypes, ms, device="a device")
    assert fitted.error < 1e-6
    assert min(fitted.entries.values()) >= 0 <= fitted.base
    for genotype in (space.sample(draw) for _ in range(50)):
        assert fitted.predict(space, genotype) == pytest.approx(table.predict(space, genotype), rel=1e-6)


def test_the_table_of_a_space_predicts_networks_that_it_never_saw(monkeypatch):
    """By a clock that counts multiply-adds: a busy machine changes nothing, and the cost adds up exactly."""

    @cache
    def counted(network, x):
        with FlopCounterMode(display=False) as counter:
            network(x)
        return 1 + counter.get_total_flops() / 1e6

    monkeypatch.setattr(module, "_timed", counted)
    space = load("nasbench201", width=8, cells=1)
    table = measure_table(space, (3, 16, 16), CPU, samples=60, blocks=1)
    assert table.error < 1e-6
    for genotype in [(0,) * 6, (3,) * 6, space.sample(np.random.default_rng(5))]:
        expected = counted(space.network(genotype).eval(), torch.randn(1, 3, 16, 16))
        assert table.predict(space, genotype) == pytest.approx(expected)
    assert table.predict(space, (3,) * 6) > 1.5 * table.predict(space, (0,) * 6)
