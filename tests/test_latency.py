"""Latency: side by side in shuffled rounds, and tables that are read, fitted and refused."""

import json
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.errors import ConfigError, TrialError
from nas.space import latency as module
from nas.space.graph import architecture_hash
from nas.space.latency import Latency, LatencyTable, interleaved, measure_table
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
    (times,) = interleaved([network], torch.randn(4, 1, 16, 16), repeats=20, warmup=3)
    found = Latency.of(times)
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


# -- looked up ----------------------------------------------------------------------------------------


def test_a_table_reads_as_it_was_written(tmp_path):
    by_option = {"0->1=skip_connect": 0.0, "0->1=nor_conv_3x3": 1.25}
    for table in (
        LatencyTable("a device", by_option, base=0.5, error=0.03),
        LatencyTable("a device", {"0123456789abcdef": 1e-3}),
    ):
        table.write(tmp_path / "table.json")
        assert LatencyTable.read(tmp_path / "table.json") == table


GOOD = {"unit": "ms", "device": "phone", "base": 1.0, "entries": {"a": 3.0}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "s"}, "unit"),
        ({"entries": [1, 2]}, "entries"),
        ({"entries": {"a": True}}, r"entries\.a"),
        ({"entries": {"a": -1}}, r"entries\.a"),
        ({"entries": {"a": 10**400}}, "integer of more than 64 bits"),
        ({"bas": 1.0}, "bas"),
    ],
)
def test_a_file_that_is_no_table_is_refused(change, message, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(ConfigError, match=message) as caught:
        LatencyTable.read(path)
    assert str(path) in str(caught.value)


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


def test_the_table_of_a_space_predicts_networks_that_it_never_saw(monkeypatch):
    """By a clock that counts multiply-adds: a busy machine changes nothing, and the cost adds up exactly."""

    @cache
    def counted(network, x):
        with FlopCounterMode(display=False) as counter:
            network(x)
        return 1 + counter.get_total_flops() / 1e4

    monkeypatch.setattr(module, "_timed", counted)
    table = measure_table(TOY, (1, 8, 8), CPU, samples=15, blocks=1)
    assert table.error < 1e-6 and min(table.entries.values()) >= 0 <= table.base
    for genotype in TOY.enumerate():
        expected = counted(TOY.network(genotype).eval(), torch.randn(1, 1, 8, 8))
        assert table.predict(TOY, genotype) == pytest.approx(expected)
    assert table.predict(TOY, (2, 2, 2)) > 1.5 * table.predict(TOY, (0, 0, 0))
