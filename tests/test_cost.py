"""Costs: multiply-accumulates and activation bytes by hand, the published counts, and measured latency."""

import csv
import gzip

import numpy as np
import pytest
import torch
from published import table
from torch import nn

from nas.cost import Cost, cost, count_params, latency
from nas.errors import TrialError
from nas.ops import PRIMITIVES
from nas.registry import load
from nas.space import Space
from spaces.nasbench201 import from_string


def fixed(make):
    """A space of one network."""
    return Space("fixed", lambda _: make())


def count(make, *image_shape):
    return cost(fixed(make), (), image_shape)


# -- by hand ------------------------------------------------------------------------------------------


def test_a_strided_convolution_and_a_classifier():
    def make():
        conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))

    found = count(make, 3, 9, 9)
    assert found.params == (3 * 9 + 1) * 4 + 5 * 7
    assert found.macs == 4 * (3 * 9) * (5 * 5) + 4 * 7


def test_a_depthwise_separable_and_dilated_convolution():
    found = count(lambda: PRIMITIVES["dil_conv_3x3"](6, 8, 2), 6, 10, 12)
    assert found.params == 6 * 9 + 6 * 8 + 2 * 8
    assert found.macs == (5 * 6) * (6 * 9 + 6 * 8)


def test_two_branches_and_a_shared_layer_run_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1, bias=False)
            self.unused = nn.Linear(5, 5)

        def forward(self, x):
            return self.conv(self.conv(x)) + x

    found = count(Twice, 2, 4, 4)
    assert found.params == 4 + 30
    assert found.macs == 2 * (2 * 2 * 16)


def test_frozen_weights_are_not_parameters_but_still_compute():
    def make():
        return nn.Sequential(nn.Conv2d(1, 2, 1).requires_grad_(requires_grad=False), nn.Conv2d(2, 3, 1))

    assert count(make, 1, 4, 4).params == count_params(make()) == 9
    assert count(make, 1, 4, 4).macs == 16 * (2 + 6)


def test_activation_bytes_count_each_kept_map_once():
    def make():
        convolutions = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False)]
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(512, 10))

    # The first convolution keeps the image, the ReLU what it gives to the second, the classifier its input;
    # the weights, which are kept as well, are not activations.
    assert count(make, 3, 8, 8).activation_bytes == 4 * 64 * (3 + 8 + 8)


def test_activation_bytes_of_a_norm_and_an_addition():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4, affine=False)

        def forward(self, x):
            return (x * 2).add(self.norm(x)).relu()

    found = count(lambda: nn.Sequential(nn.Conv2d(1, 4, 1), Residual()), 1, 6, 6)
    statistics = 2 * 4  # mean and deviation of the batch of two
    assert found.activation_bytes == 4 * 36 * (1 + 4 + 4) + 4 * statistics // 2


def test_activations_grow_with_the_image_and_not_with_the_weights():
    small, large = (count(lambda: nn.Conv2d(3, 8, 3, padding=1), 3, side, side) for side in (8, 16))
    assert large.activation_bytes == 4 * small.activation_bytes
    wide = count(lambda: nn.Conv2d(3, 80, 3, padding=1), 3, 8, 8)
    assert wide.activation_bytes == small.activation_bytes == 4 * 3 * 64


# -- published ----------------------------------------------------------------------------------------


def test_nasbench201_cells_cost_what_its_table_says():
    with gzip.open(table("nasbench201.csv.gz"), "rt") as file:
        rows = list(csv.DictReader(file))
    space, rng = load("nasbench201"), np.random.default_rng(0)
    for i in rng.choice(len(rows), 200, replace=False):
        row = rows[i]
        found = cost(space, from_string(row["arch"]), (3, 32, 32))
        assert found.params == int(row["params"])
        assert found.macs == pytest.approx(1e6 * float(row["flops_c10_M"]), rel=1e-5)


def test_counting_takes_no_memory_and_leaves_the_random_stream_alone():
    before = torch.get_rng_state()
    found = count(lambda: nn.Conv2d(10**5, 10**5, 1, bias=False), 10**5, 100, 100)
    assert found == Cost(params=10**10, macs=10**14, activation_bytes=4 * 10**9)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_auxiliary_head_counts_as_parameters_but_not_as_work():
    plain, auxiliary = (load("darts", width=4, cells=3, auxiliary=a) for a in (False, True))
    genotype = plain.sample(np.random.default_rng(0))
    without, with_head = (cost(space, genotype, (3, 32, 32)) for space in (plain, auxiliary))
    assert without.macs == with_head.macs and without.params < with_head.params


# -- faults -------------------------------------------------------------------------------------------


def test_a_network_that_rejects_the_images_fails_its_trial():
    with pytest.raises(TrialError, match=r"images of \(5, 8, 8\) fail: RuntimeError") as caught:
        cost(load("toy", in_channels=1), (0, 0, 0), (5, 8, 8))
    assert caught.value.reason == "build"


def test_a_network_that_cannot_be_built_fails_its_trial():
    space = Space("broken", lambda choose: nn.Linear(8 // choose.value("divisor", (0, 1)), 1))
    with pytest.raises(TrialError, match="build failed: ZeroDivisionError") as caught:
        cost(space, (0,), (3, 8, 8))
    assert caught.value.reason == "build"


# -- latency ------------------------------------------------------------------------------------------


def test_latency_is_ordered_and_leaves_the_network_as_it_was():
    space = load("toy")
    network = space.network((2, 2, 2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = latency(network, torch.randn(4, 1, 16, 16), repeats=20, warmup=3)
    assert 0 < found.low_ms <= found.p50_ms <= found.high_ms
    assert found.p50_ms <= found.p95_ms < 1000
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_larger_batch_takes_longer():
    network = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1))
    small, large = (latency(network, torch.randn(n, 8, 24, 24), repeats=15, warmup=3) for n in (1, 16))
    assert large.p50_ms > 2 * small.p50_ms
