"""Paths of execution compared with each other."""

import copy

import pytest
import torch
import torch.nn.functional as F

from nas.oneshot.fused.comparing import PATHS, compare, difference_in_float64, in_layout
from nas.registry import load

CPU = torch.device("cpu")


@pytest.fixture
def network():
    return load("toy", width=4, classes=5, in_channels=3).network((0, 1, 2)).train()


def training(network):
    """One step of SGD; a loss that does not depend on the path."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    like = next(network.parameters())

    def step(number, last):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(number)).to(like)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(in_layout(x, channels_last=last)), torch.arange(4))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def test_every_path_of_the_device_is_timed_on_a_copy(network):
    before = copy.deepcopy(network.state_dict())
    rows = compare(network, training, steps=3, device=CPU)
    assert list(rows) == [path for path in PATHS if path != "kernels"]
    assert rows["plain"]["ratio"] == 1.0
    assert all(row["ms"] > 0 and row["calls"] > 0 and row["peak_MiB"] > 0 for row in rows.values())
    assert rows["plain"]["loss_difference"] == 0.0
    assert rows["batched"]["loss_difference"] < 1e-3
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_paths_that_differ_are_seen_to(network):
    assert difference_in_float64(network, training, steps=3, device=CPU) < 1e-12

    def wrong(network):
        step, run = training(network), any(m.execute for m in network.modules() if hasattr(m, "execute"))
        return lambda number, last: step(number, last) + 0.5 * run

    assert difference_in_float64(network, wrong, steps=3, device=CPU) == pytest.approx(0.5)
    assert compare(network, wrong, steps=1, device=CPU)["batched"]["loss_difference"] > 0.4
